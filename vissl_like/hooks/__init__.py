"""Observers of a run: what it prints, writes, measures and warns about; one file per hook."""
