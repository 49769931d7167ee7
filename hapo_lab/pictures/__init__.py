"""Pictures of runs and of the theory: pure functions from data to a figure."""
