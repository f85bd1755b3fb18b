"""Run 4-bit language models on a workstation."""

__version__ = "0.1.0"
