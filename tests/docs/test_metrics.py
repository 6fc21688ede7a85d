"""The page of metrics lists what runs log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orlaif.cli.recipe import run
from orlaif.training.metric_names import METRICS
from tests.cli.test_cli import small


def known(name: str) -> bool:
    """Whether a metric is in the table, ``<...>`` standing for any text."""
    return any(re.fullmatch(re.sub(r"<[^>]*>", ".+", re.escape(one).replace(r"\ ", " ")), name) for one in METRICS)


def test_a_name_that_is_not_in_the_table_is_noticed() -> None:
    assert known("val/accuracy/color")
    assert known("train/kl")
    assert not known("train/kl/new")


@pytest.mark.parametrize("recipe", ["demo_sft.yaml", "demo_rlaif.yaml"])
def test_every_logged_metric_has_a_meaning(recipe: str, tmp_path: Path, tiny_model: str, data_root: str) -> None:
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    if "rlaif" in recipe:
        init = "--model.init_args"
        steps += [f"{init}.rollout.init_args.correction.high=2", f"{init}.num_updates=2"]
        steps += [f"{init}.policy.init_args.answer_format=last_line", f"{init}.truncated=mask"]
        steps += [f"{init}.order_consistency_every_n_steps=1"]
    cli = run(small(recipe, "fit", tmp_path, tiny_model, data_root, *steps))
    logged = set(cli.trainer.callback_metrics)
    assert len(logged) > 6
    assert not [name for name in sorted(logged) if not known(name)]
