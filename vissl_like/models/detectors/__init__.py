"""Detectors around a trunk: torchvision's R-CNNs, and transformers' DETR."""
