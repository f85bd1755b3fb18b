"""The decoder: one forward pass for quantizer and engine. Knows weights and kernels; loader.py alone knows files."""
