"""A run's records, logs and checkpoints."""
