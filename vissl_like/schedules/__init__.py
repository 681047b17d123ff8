"""Schedules: ``(base, *, options)`` -> a pure function of ``Progress``, so that resuming needs no schedule state."""
