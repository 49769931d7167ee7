"""What samples rollouts: transformers, and vLLM in a process of its own."""
