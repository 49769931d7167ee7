"""The command line, and the checks of this machine and of a model on it."""
