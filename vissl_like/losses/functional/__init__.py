"""Pure functions on tensors that several objectives share."""
