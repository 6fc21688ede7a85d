"""Oracles that ask a server: many questions at the same time, all of them waited for, groups counted as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from torch import Tensor

from orlaif.answer_format import Sees, checked_sees
from orlaif.openai_client import ChatClient, UnansweredError
from orlaif.oracles.base import Oracle
from orlaif.stages import stage
from orlaif.types import CandidateGroup, OracleError

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


async def _counted(groups: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What comes of the groups, which are counted as they come."""
    with stage("judge", len(groups), "groups") as judged:

        async def one(group: Coroutine[Any, Any, T]) -> T:
            outcome = await group
            judged.advance()
            return outcome

        return list(await asyncio.gather(*map(one, groups)))


class AsksServer(Oracle):
    """An oracle that asks a server about each group, and whose group fails where a request or its reply does.

    Args:
        client: the server, and how it is asked.
        sees: what of a completion is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).

    Raises:
        ValueError: another ``sees``.
    """

    mostly_waits = True

    def __init__(self, client: ChatClient, sees: Sees) -> None:
        self.client, self.sees = client, checked_sees(sees)
        self._failures = 0

    def ask_about(
        self, groups: Sequence[CandidateGroup], one: Callable[[CandidateGroup], Coroutine[Any, Any, Tensor]]
    ) -> list[Tensor | OracleError]:
        """What ``one`` makes of each group, all at the same time; or why there is nothing.

        Args:
            groups: P groups; ``one`` gets them with what is to be seen of their answers.
            one: asks about a group; its ValueError or UnansweredError is that group's failure.
        """

        async def outcome(group: CandidateGroup) -> Tensor | OracleError:
            try:
                return await one(group)
            except (ValueError, UnansweredError) as error:
                return OracleError(type(self).__name__, group.prompt.id, str(error))

        async def every(seen: Sequence[CandidateGroup]) -> list[Tensor | OracleError]:
            return await _counted([outcome(group) for group in seen])

        outcomes = self.client.run(every([group.seen(self.sees) for group in groups]))
        self._failures += sum(isinstance(outcome, OracleError) for outcome in outcomes)
        return outcomes

    def take_counts(self) -> dict[str, float]:
        """``requests``, ``cache_hits`` and ``failures`` (groups) since this was last asked."""
        counts = {name: float(self.client.counts[name]) for name in ("requests", "cache_hits")}
        counts["failures"] = float(self._failures)
        self.client.counts.clear()
        self._failures = 0
        return counts
