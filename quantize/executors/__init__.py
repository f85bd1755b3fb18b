"""Where jobs are solved: in this process, or by the workers of a Ray cluster."""
