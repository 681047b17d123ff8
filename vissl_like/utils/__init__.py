"""Small things without a room of their own; imports nothing else of the package."""
