"""A process that ranks groups by a judge with a cache: ``python -m tests.oracles.cache_run URL CACHE COUNT``."""

from __future__ import annotations

import sys

from orlaif.openai_client import ChatClient
from orlaif.oracles import HTTPJudge
from tests.oracles.test_http import group

if __name__ == "__main__":
    url, cache_dir, count = sys.argv[1:]
    judge = HTTPJudge(ChatClient(url, "tiny", cache_dir=cache_dir, concurrency=2, max_retries=0), num_ballots=1)
    for i in range(int(count)):  # one step after the other
        ranking = judge.rank([group(f"{i} {j}", f"{i} {j}b", f"{i} {j}cc", id=f"{i}/{j}") for j in range(2)])
        assert ranking.failures == (), ranking.failures
    print(judge.take_counts())
