"""The command line, and what this machine and a model on it can do."""
