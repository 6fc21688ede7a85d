"""The plan within 15 % of what a real step allocates, stage by stage, for every family of a tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks.plan_families import TOKENS, TRAINED, measured, off, planned
from benchmarks.wider import wider, wider_model
from orlaif.tiny import families

#: One of each kind: a group in a row, layers with a state, frames whose tokens see one another.
DIFFERENT = [("llava_onevision", "lora", 12), ("qwen3_5", "full", TOKENS), ("molmo2", "lora", 12)]
#: Whose passes need numbers, and so have no plan (``tests/cli/test_plan_families.py``).
UNKNOWN = "qwen4_exp"
EVERY = [
    pytest.param(name, trained, TOKENS, marks=pytest.mark.slow)
    for name in families()
    if name != UNKNOWN
    for trained in TRAINED
]


@pytest.mark.parametrize(("family", "trained", "tokens"), [*DIFFERENT, *EVERY])
def test_the_plan_is_what_a_step_allocates(family: str, trained: str, tokens: int, tmp_path: Path) -> None:
    if family == "perception_lm" and importlib.util.find_spec("timm") is None:
        pytest.skip("its tower is timm's, which is not installed")
    folder = wider_model(family, tmp_path)
    found: dict[str, Any] = {"measured": measured(folder, trained, tokens), "planned": planned(folder, trained, tokens)}
    print(found)
    for stage, difference in off(**found).items():
        assert abs(difference) < 0.15, f"{stage} {difference:+.1%}"


def test_a_config_is_made_wider() -> None:
    """Widths by 4, a decoder's layers by 2, and nothing else."""
    text = {"hidden_size": 8, "num_hidden_layers": 2, "layer_types": ["a", "b"], "vocab_size": 9, "num_heads": 2}
    said = {
        "text_config": text,
        "vision_config": {"intermediate_size": 8, "num_hidden_layers": 2},
        "id2label": {0: "a"},
    }
    assert wider(said, 4, deeper=True) == {
        "text_config": {
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "layer_types": ["a", "b", "a", "b"],
            "vocab_size": 9,
            "num_heads": 2,
        },
        "vision_config": {"intermediate_size": 32, "num_hidden_layers": 2},
        "id2label": {0: "a"},
    }
    assert wider(said, 4, deeper=False)["text_config"]["num_hidden_layers"] == 2
