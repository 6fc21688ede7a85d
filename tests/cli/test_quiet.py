"""What the libraries say where nobody looks."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest
from transformers.utils import logging as transformers_logging

from orlaif.cli.quiet import quiet_libraries


@pytest.fixture
def bars() -> Iterator[None]:
    """Bars are on, as in a fresh process, and off again for the other tests."""
    transformers_logging.enable_progress_bar()
    yield
    transformers_logging.disable_progress_bar()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "drawn"), [(io.StringIO(), False), (Terminal(), True)])
def test_transformers_bars_are_drawn_on_a_terminal_alone(
    stream: io.StringIO, drawn: bool, bars: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    quiet_libraries()
    assert list(transformers_logging.tqdm(range(3), desc="Loading weights")) == [0, 1, 2]
    assert ("Loading weights" in stream.getvalue()) == drawn
