"""What a method does to the activations at a site; one method a file."""
