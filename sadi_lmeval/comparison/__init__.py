"""Many settings or methods over the same tasks."""
