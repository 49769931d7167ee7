"""The engines that sample rollouts: transformers, and vLLM in its own process."""
