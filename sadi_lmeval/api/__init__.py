"""Steering outside the harness: fit a method, keep and share the fit, steer any model with it."""
