"""From the pairs of a task to the edits that its documents are scored with."""
