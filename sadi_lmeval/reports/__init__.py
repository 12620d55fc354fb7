"""Records of comparisons, and the tables, tests and pages that are made of them alone."""
