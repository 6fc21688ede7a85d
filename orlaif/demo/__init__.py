"""The embedded data set and model, and the demo that trains on them."""
