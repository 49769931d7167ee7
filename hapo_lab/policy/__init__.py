"""The policy: a quantized base model with a LoRA adapter, and its log-probabilities."""
