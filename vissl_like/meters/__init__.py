"""Measures of predictions that are fed batch by batch: one file per meter."""
