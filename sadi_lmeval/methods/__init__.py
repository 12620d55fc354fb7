"""Steering methods, one a module: all that is a method's own, and what they have in common."""
