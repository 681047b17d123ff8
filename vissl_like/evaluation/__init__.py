"""What frozen features are worth: k-NN, linear probe, comparisons; one file per evaluation."""
