"""Trunks: ``(channels, *, options)`` -> module from images ``[n, C, H, W]`` to features ``[n, feature_dim]``."""
