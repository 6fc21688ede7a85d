"""The rows that a pass is made of, for those who are not told: recurrent layers, and whoever builds a model's masks.

Models hand keyword arguments on to their attention functions, but not to all layers, and to no mask. So rows are
current while their pass runs; a layer that is recomputed in the backward pass finds those of its pass (:func:`kept`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass

from orlaif.policy.prefix.divided import Division
from orlaif.policy.prefix.layout import GroupRows


@dataclass(frozen=True, kw_only=True)
class Laid:
    """What the running pass is made of.

    Args:
        rows: its layout.
        attention: what attends to them (``orlaif.policy.prefix.attention``).
        division: of their prompts among processes, where they are divided; ``rows`` is what this process has.
    """

    rows: GroupRows
    attention: str
    division: Division | None = None


_CURRENT: ContextVar[Laid | None] = ContextVar("orlaif_rows", default=None)


def current() -> Laid | None:
    """The rows of the running pass; None where it is no pass over rows."""
    return _CURRENT.get()


@contextmanager
def laid(what: Laid | None) -> Iterator[None]:
    """A context in which ``what`` is :func:`current`."""
    token = _CURRENT.set(what)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def kept() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's first run and of its recomputation: ``context_fn`` of ``torch.utils.checkpoint``."""
    return nullcontext(), laid(current())
