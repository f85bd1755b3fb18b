"""Ranks, what they exchange, and how a tensor is cut among them. Knows no model."""
