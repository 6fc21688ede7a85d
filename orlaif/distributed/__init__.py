"""Processes of one run together: agreement, sharding, FSDP2 under Lightning, checkpoints."""
