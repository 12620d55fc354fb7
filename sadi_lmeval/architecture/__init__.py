"""Where in a model its attention heads, neurons and hidden states are, and the door to them."""
