"""Contrastive pairs: which documents, and what a recipe makes of each."""
