"""Models and runs, asked the same questions, sampled and scored side by side."""
