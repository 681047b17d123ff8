"""Processes of a run: the group (``comm``) and how they are started (``launch``)."""
