"""Objectives: one file per method, pure functions on tensors in ``functional``."""
