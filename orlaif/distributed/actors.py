"""Actors of Ray: objects in processes of their own, on this machine or others, that all processes of a run share.

Process 0 starts a Ray session on its machine, or joins the one at an address; the others join the same. It owns the
actors, which end with it, however it ends. An actor that dies is started again by Ray, and what it was asked is asked
anew (``orlaif.distributed.ray_session``).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orlaif.distributed.ray_session import NAMESPACE, join_session, leave_session
from orlaif.distributed.sync import exchange, num_processes, process_index, raise_together
from orlaif.stages import stage

log = logging.getLogger(__name__)

#: Seconds that an actor which has died may take to be there again.
PATIENCE_S = 600.0


class ActorLostError(RuntimeError):
    """An actor that is not there any more, and will not be again."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How many actors there are, and where.

    Args:
        actors: how many.
        resources: of each: ``num_cpus``, ``num_gpus``, and any that the machines of the Ray session have been given
            names for (``ray start --resources='{"sampler": 8}'``). Without ``num_gpus`` an actor sees no GPU.
        max_restarts: how often Ray starts an actor again that has died; -1: always.
        address: of a Ray session that has been started (``ray start``); None: that of ``RAY_ADDRESS``, or else a new
            one on the machine of process 0.

    Raises:
        ValueError: no actor, or Ray is not installed.
    """

    actors: int = 1
    resources: Mapping[str, float] | None = None
    max_restarts: int = 3
    address: str | None = None

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise ValueError(f"actors is {self.actors}; it must be 1 or more")
        if importlib.util.find_spec("ray") is None:
            raise ValueError("a Remote needs Ray, which is not installed: pip install '.[ray]' in a checkout")

    def options(self) -> dict[str, Any]:
        """Arguments of Ray for each actor."""
        named = {name: float(value) for name, value in (self.resources or {}).items()}
        options: dict[str, Any] = {name: named.pop(name, 0.0) for name in ("num_cpus", "num_gpus")}
        return options | {"resources": named, "max_restarts": self.max_restarts, "max_task_retries": 0}

    def check(self, cluster: Mapping[str, float]) -> None:
        """Raise ValueError where the machines of the session do not have what the actors need."""
        for name, needed in (self.resources or {}).items():
            name = {"num_cpus": "CPU", "num_gpus": "GPU"}.get(name, name)
            if (there := cluster.get(name, 0.0)) < self.actors * needed:
                raise ValueError(
                    f"resources: {self.actors} actors need {self.actors * needed:g} {name}, and the Ray session has "
                    f"{there:g}"
                )


@dataclass(frozen=True, kw_only=True)
class Call:
    """What an actor is asked.

    Args:
        actor: its number.
        method: of what it holds.
        arguments: of that method; those that are of Ray's object store are fetched by the actor.
        weight: what it counts where it has to be asked anew.
    """

    actor: int
    method: str
    arguments: tuple[Any, ...]
    weight: int = 1


class Host:
    """What lives in the process of an actor: whatever ``factory`` makes of ``arguments``."""

    def __init__(self, factory: Any, *arguments: Any) -> None:
        # Ctrl-C reaches all processes of a terminal; the run still needs the actor, for its checkpoint.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.made = factory(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of it returns."""
        return getattr(self.made, method)(*arguments)

    def pid(self) -> int:
        """Of the process; once it is there."""
        return os.getpid()


class Pool:
    """Actors of one kind, which start when it is made. All processes of the run must make it, and close it.

    Args:
        placement: how many, and where.
        factory: a class, or another callable, that can be pickled by name.
        arguments: of it, for every actor.

    Attributes:
        asked_anew: weight of the calls that had to be repeated since it was last read.
    """

    def __init__(self, placement: Placement, factory: Any, *arguments: Any) -> None:
        self.asked_anew = 0
        self.placement = placement
        self._lock = threading.Lock()
        self.ray, self._uses_session = join_session(placement.address)
        error, self._name = None, exchange(uuid.uuid4().hex)[0]
        if process_index() == 0:
            try:
                placement.check(self.ray.cluster_resources())
                kind = self.ray.remote(Host)
                self._actors = [
                    kind.options(**self.named(i), **placement.options()).remote(factory, *arguments)
                    for i in range(placement.actors)
                ]
            except Exception as problem:
                error = _cause(problem)
        raise_together(error)
        if process_index() > 0:
            self._actors = [self.ray.get_actor(**self.named(i)) for i in range(placement.actors)]

    def wait(self) -> None:
        """Until all actors are there; raises on all processes, which must all call, what kept one from it."""
        error = None
        try:
            with stage("starting actors of Ray", len(self._actors)) as started:
                for actor in self._actors:
                    self.ray.get(actor.pid.remote())
                    started.advance()
        except Exception as problem:
            error = _cause(problem)
        raise_together(error)

    def shares(self, number: int) -> list[tuple[int, range]]:
        """``number`` things dealt out to the actors of this process: the actor, and which of them it gets."""
        n, world, index = self.placement.actors, num_processes(), process_index()
        mine = range(index * n // world, (index + 1) * n // world) if n >= world else range(index % n, index % n + 1)
        parts = min(len(mine), number)
        return [(mine[i], range(i * number // parts, (i + 1) * number // parts)) for i in range(parts)]

    def named(self, number: int) -> dict[str, str]:
        """What Ray finds one of them by."""
        return {"name": f"{self._name}-{number}", "namespace": NAMESPACE}

    def pids(self) -> list[int]:
        """Of the actors' processes."""
        return list(self.ray.get([actor.pid.remote() for actor in self._actors]))

    def put(self, value: Any) -> Any:
        """Put into Ray's object store, which each machine fetches once."""
        return self.ray.put(value)

    def ask(self, calls: Sequence[Call]) -> list[Any]:
        """What all of these return, in their order; those of an actor that dies are asked anew.

        Raises:
            Exception: what a call raised.
            ActorLostError: an actor has died more often than ``max_restarts``, or is not there again for long.
        """
        pending = [self._submit(call) for call in calls]
        return [self._result(reference, call) for reference, call in zip(pending, calls, strict=True)]

    def _submit(self, call: Call) -> Any:
        return self._actors[call.actor].call.remote(call.method, *call.arguments)

    def _result(self, reference: Any, call: Call) -> Any:
        errors = self.ray.exceptions
        away_since = None
        while True:
            try:
                return self.ray.get(reference)
            except errors.ActorUnavailableError as error:
                if away_since is None:
                    away_since = time.monotonic()
                    log.warning("actor %d has died; it is started again, and asked anew", call.actor)
                    with self._lock:
                        self.asked_anew += call.weight
                if time.monotonic() - away_since > PATIENCE_S:
                    raise ActorLostError(f"actor {call.actor} has not been there for {PATIENCE_S:g} s") from error
            except errors.RayActorError as error:
                raise ActorLostError(
                    f"actor {call.actor} has died more often than max_restarts allows ({self.placement.max_restarts})"
                ) from error
            except errors.RayTaskError as error:
                raise _cause(error) from None
            time.sleep(0.2)
            reference = self._submit(call)

    def take_count(self) -> int:
        """``asked_anew``, which begins again."""
        with self._lock:
            count, self.asked_anew = self.asked_anew, 0
        return count

    def close(self) -> None:
        """End the actors, and the session where this run has started it."""
        if process_index() == 0:
            for actor in self._actors:
                self.ray.kill(actor)
        self._actors = []
        if self._uses_session:
            leave_session(self.ray)
            self._uses_session = False


def _cause(error: Exception) -> Exception:
    """What went wrong in an actor, without Ray's envelope."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
