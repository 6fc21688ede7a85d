"""What may differ when a run goes on, and what is refused."""

from __future__ import annotations

import pytest

from orlaif.distributed.changes import check_changes, is_allowed

RECIPE = {
    "seed_everything": "1",
    "run_dir": "'outputs/a'",
    "model.init_args.optimizer.init_args.lr": "0.1",
    "model.init_args.policy.init_args.path": "'base'",
    "model.init_args.oracle.init_args.path": "'ranker'",
    "data.init_args.batch_size": "2",
    "data.init_args.train.init_args.path": "'a.jsonl'",
    "trainer.devices": "1",
    "trainer.max_steps": "10",
    "trainer.accumulate_grad_batches": "1",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainer.devices", "2"),
        ("trainer.max_steps", "20"),
        ("trainer.logger", "False"),
        ("trainer.callbacks", "[]"),
        ("data.init_args.train.init_args.path", "'/elsewhere/a.jsonl'"),
        ("data.init_args.val.init_args.path", "'v.jsonl'"),
        ("model.init_args.policy.init_args.path", "'/elsewhere/base'"),
    ],
)
def test_what_changes_nothing_that_is_learnt_is_a_note(name: str, value: str) -> None:
    assert check_changes(RECIPE, {**RECIPE, name: value}, []) == [f"{name}: {RECIPE.get(name, '(none)')} -> {value}"]


@pytest.mark.parametrize(
    "name", ["run_dir", "ckpt_path", "resume_changed", "overwrite", "config", "trainer.default_root_dir"]
)
def test_keys_of_the_command_are_no_news(name: str) -> None:
    assert check_changes(RECIPE, {**RECIPE, name: "'other'", "trainer.devices": "2"}, []) == ["trainer.devices: 1 -> 2"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("seed_everything", "seed_everything"),
        ("model.init_args.optimizer.init_args.lr", "lr"),
        ("model.init_args.optimizer.init_args.lr", "optimizer"),
        ("model.init_args.oracle.init_args.path", "oracle.init_args.path"),
        ("data.init_args.batch_size", "batch_size"),
        ("trainer.accumulate_grad_batches", "trainer.accumulate_grad_batches"),
        ("model.init_args.loss.kl_coef", "loss.kl_coef"),
    ],
)
def test_the_rest_is_an_error_unless_it_is_allowed(name: str, key: str) -> None:
    changed = {**RECIPE, name: "9"}
    with pytest.raises(ValueError, match=rf"{name}: .* -> 9\. Resume with .*--resume_changed {name.split('.')[-1]},?"):
        check_changes(RECIPE, changed, [])
    with pytest.raises(ValueError, match=name):
        check_changes(RECIPE, changed, ["l", "batch", "accumulate"])
    assert check_changes(RECIPE, changed, [key]) == [f"{name}: {RECIPE.get(name, '(none)')} -> 9"]


def test_a_key_that_is_gone_is_named_too() -> None:
    with pytest.raises(ValueError, match=r"seed_everything: 1 -> \(none\)"):
        check_changes(RECIPE, {k: v for k, v in RECIPE.items() if k != "seed_everything"}, [])


def test_keys_are_whole_words() -> None:
    assert is_allowed("a.lr", ["lr"])
    assert is_allowed("a.b.lr", ["a.b"])
    assert is_allowed("a.init_args.b.init_args.lr", ["b.lr"])
    assert is_allowed("a.b.lr", ["a.init_args.b"])
    assert not is_allowed("a.lr_scheduler", ["lr"])
    assert not is_allowed("a.b.lr", ["a.lr"])
