"""Generation: sequences, scheduling, the step, sampling, and the process around them."""
