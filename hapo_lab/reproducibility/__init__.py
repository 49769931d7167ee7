"""What makes a run repeatable: files that survive a kill, seeds, parts by name."""
