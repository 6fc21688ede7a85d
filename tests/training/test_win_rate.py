"""``val/win_rate``: the policy against the one that the run started from."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from orlaif.data.collator import Collator
from orlaif.oracles import Oracle
from orlaif.oracles.base import dense_ranks
from orlaif.training.callbacks import GreedyRank, WinRate
from orlaif.training.callbacks.fixed_prompts import num_bytes
from orlaif.training.callbacks.greedy_rank import normalized_rank
from orlaif.types import OracleError, Ranking
from tests.training.test_rlaif import data, rlaif, trainer


class Prefers(Oracle):
    """The answer that is ``best``, or else that in ``place``; groups of others fail."""

    def __init__(self, best: str = "new", place: int = 0) -> None:
        self.best, self.place = best, place
        self.asked: list[tuple[str, ...]] = []

    def rank(self, groups: Any) -> Ranking:
        rows, failures = [], []
        for group in groups:
            self.asked.append(group.answers)
            if "fails" in group.answers:
                failures.append(OracleError("Prefers", group.prompt.id, "no idea"))
            liked = [answer == self.best for answer in group.answers]
            ranks = (
                [0 if one else 1 for one in liked] if any(liked) else [int(i != self.place) for i in range(len(liked))]
            )
            rows.append([-1] * len(ranks) if "fails" in group.answers else ranks)
        return Ranking(ranks=torch.tensor(rows), failures=tuple(failures))


class Says(Callback):
    """Makes the policy answer what it is told, by the step of the optimizer and the prompt's place."""

    def __init__(self, words: dict[int, list[str]]) -> None:
        self.words, self.logged = words, dict[int, float]()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        ids = [prompt.id for prompt in trainer.datamodule.questions("val")]

        def answer(batch: Any) -> list[str]:
            said = self.words[trainer.global_step]
            return [said[ids.index(prompt.id) % len(said)] for prompt in batch.prompts]

        pl_module.answer = answer

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.logged[trainer.global_step] = float(trainer.callback_metrics.get("val/win_rate", torch.nan))


def go(tmp_path: Path, model: str, root: str, oracle: Prefers, words: dict[int, list[str]], **settings: Any) -> Says:
    says = Says(words)
    options = {"max_steps": max(words), "val_check_interval": 1, "limit_val_batches": 1, **settings}
    run = trainer(tmp_path, callbacks=[says, WinRate(num_prompts=4, batch_size=3)], **options)
    run.fit(rlaif(model, oracle=oracle, order_consistency_every_n_steps=0), data(root, 4, eval_batch_size=2))
    return says


def of_pairs(oracle: Prefers) -> list[tuple[str, ...]]:
    return [answers for answers in oracle.asked if len(answers) == 2]


def test_wins_ties_and_losses_in_both_orders(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """Step 1: of four, one is better, one the same, two are worse for whoever asks by place: half each."""
    oracle = Prefers()
    says = go(
        tmp_path,
        tiny_model,
        data_root,
        oracle,
        {0: ["a", "b", "c", "d"], 1: ["new", "b", "x", "y"], 2: ["new", "new", "new", "new"], 3: ["new"] * 4},
    )
    assert says.logged == {1: (1 + 0.5 + 0.5 + 0.5) / 4, 2: 1.0, 3: 1.0}
    first = [("a", "new"), ("c", "x"), ("d", "y"), ("new", "a"), ("x", "c"), ("y", "d")]
    then = [("b", "new"), ("c", "new"), ("d", "new"), ("new", "b"), ("new", "c"), ("new", "d")]
    assert sorted(of_pairs(oracle)) == sorted(first + then)  # each once, the third validation none
    kept = [json.loads(line)["answer"] for line in (tmp_path / "win_rate.jsonl").read_text().splitlines()]
    assert kept == ["a", "b", "c", "d"]


def test_losses_and_groups_without_a_rank(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    says = go(tmp_path, tiny_model, data_root, Prefers("a"), {0: ["a", "a", "a", "b"], 1: ["x", "y", "fails", "b"]})
    assert says.logged == {1: pytest.approx(0.5 / 3)}


def test_a_run_that_goes_on_compares_with_where_it_began(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    callback, oracle = WinRate(num_prompts=4), Prefers()
    words = {step: ["old"] for step in range(2)} | {2: ["new"]}
    run = trainer(tmp_path, callbacks=[Says(words), callback], max_steps=1)
    module = rlaif(tiny_model, oracle=oracle, order_consistency_every_n_steps=0)
    run.fit(module, data(data_root, 4, eval_batch_size=2))
    run.save_checkpoint(tmp_path / "one.ckpt")

    says = Says(words)
    options: dict[str, Any] = {"max_steps": 2, "val_check_interval": 1, "limit_val_batches": 1}
    again = trainer(tmp_path, callbacks=[says, WinRate(num_prompts=4)], **options)
    resumed = rlaif(tiny_model, oracle=oracle, order_consistency_every_n_steps=0)
    again.fit(resumed, data(data_root, 4, eval_batch_size=2), ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert says.logged[2] == 1.0

    (tmp_path / "win_rate.jsonl").unlink()
    last = trainer(tmp_path, callbacks=[Says(words), WinRate()], max_steps=3)
    with pytest.raises(ValueError, match=r"win_rate.jsonl is not there; take WinRate out of the recipe"):
        last.fit(
            rlaif(tiny_model, oracle=oracle),
            data(data_root, 4, eval_batch_size=2),
            ckpt_path=tmp_path / "one.ckpt",
            weights_only=False,
        )


@pytest.mark.parametrize("name", ["num_prompts", "batch_size"])
def test_settings_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"WinRate.{name} is 0; it must be 1 or more"):
        WinRate(**{name: 0})


@pytest.mark.parametrize(("keep_mb", "times"), [(1000, 1), (0, 3)])
def test_videos_are_decoded_once_as_far_as_the_memory_goes(
    tmp_path: Path, tiny_model: str, data_root: str, monkeypatch: pytest.MonkeyPatch, keep_mb: int, times: int
) -> None:
    """Before the first step and at two validations; the validation's own batches come on top of these."""
    asked: list[str] = []
    real = Collator.__call__

    def counted(self: Collator, prompts: Any) -> Any:
        if threading.current_thread() is threading.main_thread():  # the loader's are on threads
            asked.extend(prompt.id for prompt in prompts)
        return real(self, prompts)

    monkeypatch.setattr(Collator, "__call__", counted)
    callback = WinRate(num_prompts=3, batch_size=2, keep_mb=keep_mb)
    says = Says({step: ["a"] for step in range(3)})
    run = trainer(tmp_path, callbacks=[says, callback], max_steps=2, val_check_interval=1, limit_val_batches=1)
    run.fit(rlaif(tiny_model, order_consistency_every_n_steps=0), data(data_root, 4, eval_batch_size=2))
    assert sorted(asked) == sorted([f"validation-{i:05d}" for i in range(3)] * times)


def test_the_bytes_of_a_batch(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    module = data(data_root, 4)
    trainer(tmp_path, max_steps=1).fit(rlaif(tiny_model), module)
    batch = module.collator([module.questions("val")[0]]).batch
    frames = batch.clips[0].items[0].frames
    inputs = sum(x.numel() * x.element_size() for x in batch.mm_inputs.values())
    tokens = 2 * 8 * batch.input_ids.shape[1]
    assert num_bytes(batch) == frames.numel() + inputs + tokens


@pytest.mark.parametrize(
    ("ranks", "place", "rank"),
    [
        ([0, 1, 2, 3, 4], 0, 0.0),
        ([0, 1, 2, 3, 4], 4, 1.0),
        ([0, 1, 2, 3, 4], 1, 0.25),
        ([0, 0, 0, 1, 1], 1, 0.25),  # two ties, two behind
        ([1, 1, 0, 0, 0], 0, 0.875),
        ([0, 0, 0], 2, 0.5),
        ([0, -1, 1, -1], 2, 1.0),  # those that were not ranked do not count
        ([0, 1, -1], 2, None),
        ([-1, 0, -1], 1, None),
    ],
)
def test_the_normalised_rank_of_an_answer(ranks: list[int], place: int, rank: float | None) -> None:
    assert normalized_rank(ranks, place) == rank


@pytest.mark.parametrize(("greedy", "rank"), [("new", 0.0), ("zzz", 1.0)])
def test_the_greedy_answer_among_the_samples(
    tmp_path: Path, tiny_model: str, data_root: str, greedy: str, rank: float
) -> None:
    """The oracle likes ``new`` best and ``zzz`` least; no sample says either."""
    sizes: set[int] = set()

    class Likes(Oracle):
        def rank(self, groups: Any) -> Ranking:
            sizes.update(len(group.answers) for group in groups)
            worth = torch.tensor([[{"new": 2.0, "zzz": 0.0}.get(a, 1.0) for a in group.answers] for group in groups])
            return Ranking(ranks=dense_ranks(worth))

    class Kept(Callback):
        value = -1.0

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.value = float(trainer.callback_metrics.get("val/greedy_rank", -1.0))

    kept = Kept()
    module = rlaif(tiny_model, oracle=Likes(), order_consistency_every_n_steps=0)
    module.answer = lambda batch: [greedy] * len(batch)  # type: ignore[method-assign]
    run = trainer(
        tmp_path,
        callbacks=[GreedyRank(num_prompts=3, batch_size=2), kept],
        max_steps=1,
        val_check_interval=1,
        limit_val_batches=1,
    )
    run.fit(module, data(data_root, 4, eval_batch_size=2))
    assert kept.value == rank
    assert sizes == {4, 5}  # in training, and with the greedy one


@pytest.mark.parametrize("kind", [GreedyRank, WinRate])
def test_a_memory_below_nothing_is_named(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}.keep_mb is -1; it must be 0 \(keep nothing\) or more"):
        kind(keep_mb=-1)
