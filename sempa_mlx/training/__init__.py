"""Training: objectives and the loop."""
