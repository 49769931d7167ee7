"""What a run leaves behind: records, logs, checkpoints."""
