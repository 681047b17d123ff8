"""Pictures of a run as PNG bytes with a text for those who cannot see them, and the page that shows them."""
