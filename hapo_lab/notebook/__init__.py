"""What lessons show and ask: dashboard, controls, explorables, exercises."""
