"""Networks: trunks, heads, the model that runs a trunk and a head over views, batch norm over processes, weights."""
