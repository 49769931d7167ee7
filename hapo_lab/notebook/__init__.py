"""The lessons' parts: dashboard, controls, explorables, exercises."""
