"""Guessing the next tokens, so that one step of the model checks several. Knows tokens and times, no kernels."""
