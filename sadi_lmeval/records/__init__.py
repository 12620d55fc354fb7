"""What results files say, with its types: written and read by the same modules."""
