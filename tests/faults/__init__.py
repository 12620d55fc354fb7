"""What goes wrong on the way: killed, damaged, read-only, full, overflowing, hostile."""
