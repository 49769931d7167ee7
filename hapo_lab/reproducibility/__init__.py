"""Repeatable runs: files that survive a kill, seeds, parts by name."""
