"""What a run sampled, kept in its folder: written a step at a time, and read again."""

from orlaif.samples.reading import Located, locate_groups, read_at, read_groups
from orlaif.samples.shards import ShardWriter

__all__ = ["Located", "ShardWriter", "locate_groups", "read_at", "read_groups"]
