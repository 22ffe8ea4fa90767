"""Data: formats to samples, prompts to tokens, samples to batches."""
