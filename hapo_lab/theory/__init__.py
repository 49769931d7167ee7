"""The exact mathematics: injection probabilities, expected gradients, and the runs that test them."""
