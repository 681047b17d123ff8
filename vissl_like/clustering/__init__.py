"""Clustering and balanced assignment."""
