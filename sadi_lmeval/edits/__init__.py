"""What is done to the activations at a site: the contract of an edit, and its families."""
