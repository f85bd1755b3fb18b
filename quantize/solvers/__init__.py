"""How one decoder layer becomes the tensors of one result: the order of its linears, and what each one sees."""
