"""What a card makes of the kernels: values, speed, and a whole model of 72 billion weights. `make gpu-check`."""
