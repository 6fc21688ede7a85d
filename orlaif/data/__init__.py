"""Data: datasets, decoding, batches, and the embedded data set."""
