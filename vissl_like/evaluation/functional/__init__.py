"""Pure functions on tensors behind the benchmark protocols: scores, samples, poolings and propagations."""
