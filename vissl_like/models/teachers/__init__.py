"""Teachers: ``(student model, *, options)`` -> a ``Teacher`` that gives the student its targets."""
