"""Answers are closed with a token at which rollouts stop, whatever a checkpoint's files disagree on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.oracles.ranker_model import answer_completions
from orlaif.policy import Policy, ending
from orlaif.policy.ending import closing_id
from orlaif.training.supervised import reference_completions
from orlaif.types import PromptBatch


def variant(model: str, folder: Path, **changes: dict[str, Any]) -> Policy:
    """A policy of a copy of the checkpoint with other values in its JSON files."""
    shutil.copytree(model, folder)
    for name, values in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return Policy(str(folder), dtype="float32", prefix="duplicate")


@pytest.fixture(autouse=True)
def _say_again() -> None:
    ending._said.clear()


@pytest.mark.parametrize(
    ("eos", "closing", "said"),
    [
        (2, 2, False),  # <|im_end|>, as the tokenizer says
        ([0, 2], 2, False),
        (0, 0, True),  # <|endoftext|>
        ([7, 1], 1, True),  # of several that which the chat template writes, <|im_start|>
        (None, 2, False),
    ],
)
def test_the_closing_token_is_one_that_ends_a_rollout(
    tiny_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, eos: Any, closing: int, said: bool
) -> None:
    policy = variant(tiny_model, tmp_path / "model", generation_config={"eos_token_id": eos})
    assert [closing_id(policy), closing_id(policy)] == [closing, closing]
    assert closing in policy.eos_ids
    assert len([record for record in caplog.records if record.name.startswith("orlaif")]) == int(said)
    if said:
        assert "the tokenizer's is <|im_end|> (2)" in caplog.text


def test_every_stage_closes_answers_alike(tiny_model: str, tmp_path: Path, batch: PromptBatch) -> None:
    policy = variant(tiny_model, tmp_path / "model", generation_config={"eos_token_id": 0})
    supervised = reference_completions(policy, batch)
    last = supervised.ids.gather(-1, supervised.lengths[..., None].cpu() - 1)
    assert last.unique().tolist() == [0]
    compared, _ = answer_completions(policy, [["red", "blue circle"]], torch.device("cpu"))
    assert compared.ids[0, 0, 1:3].tolist() == [0, 0]


def test_a_checkpoint_that_names_no_end(tiny_model: str, tmp_path: Path) -> None:
    policy = variant(
        tiny_model,
        tmp_path / "model",
        generation_config={"eos_token_id": None},
        tokenizer_config={"eos_token": None},
    )
    policy.network.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="names an end-of-sequence token"):
        _ = policy.eos_ids
