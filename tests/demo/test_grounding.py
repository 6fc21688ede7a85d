"""The demo of grounding shows what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlaif.demo.grounding import GroundingDemo
from tests.conftest import REPO


@pytest.mark.slow
def test_grounding_learns(tmp_path: Path) -> None:
    """mIoU rises by 0.2 and more, to where no answer gets that does not look at the clip."""
    summary = GroundingDemo(0, str(tmp_path), str(REPO / "recipes")).run()
    assert summary.after["miou"] > summary.before["miou"] + 0.2
    assert summary.after["miou"] > summary.constant_miou + 0.2
    assert summary.after["unreadable_rate"] == 0
