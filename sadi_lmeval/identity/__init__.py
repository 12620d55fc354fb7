"""What a number depends on: every key, record and check before resuming is made of it."""
