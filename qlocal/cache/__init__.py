"""The cache of keys and values: blocks, who holds them, what they contain. Knows tokens, no model and no scheduler."""
