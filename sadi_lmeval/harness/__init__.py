"""The host: its tasks, the options of its command, and its response cache."""
