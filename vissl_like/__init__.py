"""vissl_like: learn visual features without labels.

Importing the package is cheap (no torch); every component is imported when a run names it.
"""

__version__ = "0.1.0"
