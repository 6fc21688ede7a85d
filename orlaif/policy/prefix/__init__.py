"""A group in one row: layout, attention, forward pass, and the probe that tells whether a model allows it."""
