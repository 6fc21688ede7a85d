"""Many questions to a server at the same time: all of them waited for, and the groups counted as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from orlaif.stages import stage

T = TypeVar("T")


async def all_of(asked: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What comes of all of them, once the last is there.

    ``asyncio.gather`` alone returns at the first failure, and the other requests go on behind the training step's back:
    the server is still at work on them when the group is asked again.

    Raises:
        Exception: the first of theirs.
    """
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    said: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        said.append(outcome)
    return said


async def counted(groups: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What comes of the groups, which are counted as they come."""
    with stage("judge", len(groups), "groups") as judged:

        async def one(group: Coroutine[Any, Any, T]) -> T:
            outcome = await group
            judged.advance()
            return outcome

        return list(await asyncio.gather(*map(one, groups)))
