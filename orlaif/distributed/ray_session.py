"""One Ray session for all processes of a run. Ray is imported here alone, where it is used."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from orlaif.distributed.sync import exchange, num_processes, process_index, raise_together
from orlaif.stages import stage

log = logging.getLogger(__name__)

#: Of the names of actors.
NAMESPACE = "orlaif"
OPTIONS: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "warning"}
#: How long a session waits for the processes that use it, before it ends.
LEAVING_S = 20.0
#: How many pools of this process use a session that it has joined for them.
_users = 0
#: Address of the session that was started for this run, while this process is in it.
_started: str | None = None


@stage("starting Ray")
def join_session(address: str | None) -> tuple[Any, bool]:
    """Be part of one Ray session with the other processes of the run, which must all call.

    Args:
        address: as of :class:`Placement`.

    Returns:
        Ray, and whether :func:`leave_session` is due: not where this process was in a session before.
    """
    global _users, _started
    where, error = address or os.environ.get("RAY_ADDRESS"), None
    if not where:
        # A session that Ray starts asks for a token, but those who are told its address do not look for one unless
        # this is set when Ray is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with _signals_kept():
        import ray

        first, joins = process_index() == 0, not ray.is_initialized()
        if first:
            try:
                if joins:
                    _start(ray, where)
            except Exception as problem:
                error = problem
        raise_together(error)
        found = exchange(ray.get_runtime_context().gcs_address if first else None)[0]
        if joins and not first:
            try:
                ray.init(address=found, **OPTIONS)
            except Exception as problem:
                error = problem
        raise_together(error)
    if joins and not where:
        _started = found
    uses = joins or _users > 0
    _users += uses
    return ray, uses


def _start(ray: Any, where: str | None) -> None:
    """Join the session at an address, or start one on this machine."""
    if where:
        ray.init(address=where, **OPTIONS)
        return
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))
    if on_this_machine < num_processes():
        raise ValueError(
            f"address is null, for which a Ray session is started on one machine, and {on_this_machine} of the "
            f"{num_processes()} processes are on it; start one (ray start) and name it by address or RAY_ADDRESS"
        )
    # Ray's actors would give way to all else on the machine, the training step among it.
    local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_system_config": {"worker_niceness": 0}}
    ray.init(address="local", **local, **OPTIONS)


def leave_session(ray: Any) -> None:
    """The last pool of this process that uses a session leaves it; on process 0, a session of this run then ends."""
    global _users, _started
    _users -= 1
    if _users:
        return
    session, _started = _started, None
    if session is not None and process_index() == 0:
        _wait_for_others(session)
    ray.shutdown()
    if session is not None and process_index() > 0:
        _store().set(f"{session}/{process_index()}", "left")


def _wait_for_others(session: str) -> None:
    """Until they have left, or for a while: one that has failed does not come here."""
    if num_processes() > 1:
        others = [f"{session}/{index}" for index in range(1, num_processes())]
        try:
            _store().wait(others, timedelta(seconds=LEAVING_S))
        except RuntimeError:  # DistStoreError: time is over
            log.warning("not all processes have left the Ray session after %g s; it ends now", LEAVING_S)


def _store() -> Any:
    """What the processes of the run found each other by; unlike a collective operation it can wait for a while only."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of SIGTERM of its own in the place of the run's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
