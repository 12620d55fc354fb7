"""Forward passes: what prompts share is computed once, and every request is scored or read."""
