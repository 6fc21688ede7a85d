"""Where process 0 lays what it has put into Ray's object store, for the other processes of the run to find it.

A reference can only be handed on within what Ray itself carries; so it goes by an actor, which keeps the last one.
"""

from __future__ import annotations

from typing import Any

from orlaif.distributed.actors import Call, Placement, Pool
from orlaif.distributed.sync import exchange, process_index


class Kept:
    """What lies on the shelf, in the process of an actor."""

    def __init__(self) -> None:
        self._kept: tuple[int, list[Any]] | None = None

    def lay(self, number: int, references: list[Any]) -> None:
        """In place of what lay here; in a list, so that they are not fetched."""
        self._kept = number, references

    def get(self, number: int) -> list[Any] | None:
        """The references; None where the actor has been started again since they were laid here."""
        return self._kept[1] if self._kept is not None and self._kept[0] == number else None


class Shelf:
    """One actor for all processes of the run, which must all make it, use it and close it.

    Args:
        address: of the Ray session, as of :class:`~orlaif.distributed.actors.Placement`.
    """

    def __init__(self, address: str | None) -> None:
        self._pool = Pool(Placement(max_restarts=-1, address=address), Kept)
        self._number = 0

    def share(self, references: list[Any]) -> list[Any]:
        """What process 0 calls this with, on all processes.

        Args:
            references: into the object store; of the other processes empty.
        """
        self._number += 1
        while True:  # until it has not died in between
            if process_index() == 0:
                self._ask("lay", self._number, references)
            exchange(None)  # none looks before they are there
            found = references if process_index() == 0 else self._ask("get", self._number)
            if all(exchange(found is not None)):
                return list(found)

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._pool.ask([Call(actor=0, method=method, arguments=arguments)])[0]

    def close(self) -> None:
        """End the actor."""
        self._pool.close()
