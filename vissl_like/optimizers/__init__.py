"""Optimizers: ``(named parameters, lr, *, options) -> torch.optim.Optimizer``."""
