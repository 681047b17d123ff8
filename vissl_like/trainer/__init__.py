"""Training: how a run is built, one step of it, the run itself (a classy-vision task), and its checkpoints."""
