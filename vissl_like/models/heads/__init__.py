"""Heads: ``(feature_dim, *, options) -> Head`` from trunk features to what a loss works on."""
