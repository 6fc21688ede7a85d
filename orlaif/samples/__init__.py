"""What a run sampled, kept in its folder: written a step at a time, and read again."""

from orlaif.samples.reading import read_groups
from orlaif.samples.shards import ShardWriter

__all__ = ["ShardWriter", "read_groups"]
