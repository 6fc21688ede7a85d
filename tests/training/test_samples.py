"""What a run keeps of its samples is what it trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from orlaif.oracles import Exchange, Oracle
from orlaif.rollout import Rollout, SamplingParams
from orlaif.samples import read_groups
from orlaif.training.callbacks import KeepSamples
from orlaif.training.callbacks import samples as callback
from orlaif.types import OracleError, Ranking
from tests.training.test_rlaif import data, rlaif, trainer


class Watched(Oracle):
    """Ranks by length; keeps what it saw; cannot rank one of its groups."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[tuple[str, ...], list[int]]] = {}
        self.fails: str | None = None
        self.exchanges: list[Exchange] = []

    def rank(self, groups: Any) -> Ranking:
        rows, failures = [], []
        self.exchanges += [Exchange(prompt_id=g.prompt.id, asked="?", replied=f"of {g.prompt.id}") for g in groups]
        for group in groups:
            lengths = sorted({len(answer) for answer in group.answers})
            ranks = [lengths.index(len(answer)) for answer in group.answers]
            if self.fails is None and self.seen:
                self.fails = group.prompt.id
            if group.prompt.id == self.fails:
                ranks = [-1] * len(ranks)
                failures.append(OracleError("Watched", group.prompt.id, "no idea"))
            self.seen[group.prompt.id] = group.answers, ranks
            rows.append(ranks)
        return Ranking(ranks=torch.tensor(rows), failures=tuple(failures))

    def take_exchanges(self) -> list[Exchange]:
        exchanges, self.exchanges = self.exchanges, []
        return exchanges


def keep(tmp_path: Path, tiny_model: str, data_root: str, oracle: Oracle | None = None, **settings: Any) -> list[Any]:
    keeper = settings.pop("keeper", None) or KeepSamples()
    module = rlaif(tiny_model, oracle=oracle or Watched(), order_consistency_every_n_steps=0)
    run = trainer(tmp_path, callbacks=[keeper, *settings.pop("callbacks", [])], **settings)
    run.fit(module, data(data_root, 4), ckpt_path=settings.pop("ckpt_path", None))
    return list(read_groups(tmp_path / "samples"))


def test_each_group_with_what_became_of_it(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    oracle = Watched()
    groups = keep(tmp_path, tiny_model, data_root, oracle, max_steps=2)
    assert [(one["step"], one["batch"]) for one in groups] == [(0, 0)] * 4 + [(1, 1)] * 4
    for one in groups:
        answers, ranks = oracle.seen[one["prompt"]["id"]]
        assert [answer["text"] for answer in one["answers"]] == list(answers)
        assert [answer["rank"] for answer in one["answers"]] == ranks
        assert (one["failure"] is None) == (ranks[0] >= 0)
        (seen,) = one["seen"]
        assert seen["path"] == one["prompt"]["video"]
        assert seen["times_s"] == sorted(seen["times_s"])
        assert len(seen["times_s"]) >= 2
        assert one["seconds"]["rollout"] > 0
        replies = [exchange["replied"] for exchange in one["exchanges"]]
        tries = 3 if one["failure"] else 1
        assert replies == [f"of {one['prompt']['id']}"] * tries
        for answer in one["answers"]:
            assert len(answer["tokens"]) == len(answer["logps"]) > 0
            assert max(answer["logps"]) <= 0
            said = "".join(token for token in answer["tokens"] if not token.startswith("<|"))
            assert said.replace(" ", "") == answer["text"].replace(" ", "")
        ranked = [answer for answer in one["answers"] if answer["rank"] >= 0]
        best = sorted(ranked, key=lambda answer: answer["rank"])
        assert [a["advantage"] for a in best] == sorted((a["advantage"] for a in ranked), reverse=True)
    assert sum(one["failure"] is not None for one in groups) == 1
    assert groups[0]["prompt"]["question"]


def test_a_run_that_goes_on_keeps_each_group_once(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """Saved behind step 2, stopped behind 3: the third step is done again, by the same samples."""
    saves = ModelCheckpoint(tmp_path / "saved", "two", every_n_train_steps=2, save_top_k=-1)
    first = keep(tmp_path, tiny_model, data_root, max_steps=3, callbacks=[saves], enable_checkpointing=True)
    module = rlaif(tiny_model, oracle=Watched(), order_consistency_every_n_steps=0)
    run = trainer(tmp_path, callbacks=[KeepSamples()], max_steps=4)
    run.fit(module, data(data_root, 4), ckpt_path=str(tmp_path / "saved" / "two.ckpt"), weights_only=False)
    groups = list(read_groups(tmp_path / "samples"))
    assert [one["step"] for one in groups] == [step for step in range(4) for _ in range(4)]
    third = [[answer["text"] for answer in one["answers"]] for one in groups[8:12]]
    assert third == [[answer["text"] for answer in one["answers"]] for one in first[8:12]]


def test_a_share_is_the_same_groups_whenever_it_is_drawn(tmp_path: Path) -> None:
    half = KeepSamples(share=0.5)
    kept = [half._keeps(0, str(i)) for i in range(1000)]
    assert kept == [KeepSamples(share=0.5)._keeps(0, str(i)) for i in range(1000)]
    assert 450 < sum(kept) < 550
    assert kept != [half._keeps(1, str(i)) for i in range(1000)]
    assert not any(KeepSamples(share=0)._keeps(0, str(i)) for i in range(100))


def test_a_full_disk_ends_the_keeping_not_the_run(
    tmp_path: Path, tiny_model: str, data_root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Any, groups: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callback.ShardWriter, "write", full)
    assert keep(tmp_path, tiny_model, data_root, max_steps=2) == []
    assert caplog.text.count("no more samples are kept") == 1


@pytest.mark.parametrize("settings", [{"share": 1.5}, {"share": -0.1}, {"limit_mb": 0}])
def test_settings_out_of_range_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"KeepSamples.{next(iter(settings))} is"):
        KeepSamples(**settings)


def test_a_group_needs_no_log_probs(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """Of a rollout that gives none."""

    class Bare(Rollout):
        def __call__(self, *given: Any) -> Any:
            return dataclasses.replace(super().__call__(*given), logps=None)

    module = rlaif(tiny_model, oracle=Watched(), rollout=Bare(2, SamplingParams(max_new_tokens=2)))
    run = trainer(tmp_path, callbacks=[KeepSamples()], max_steps=1)
    run.fit(module, data(data_root, 4))
    answers = [answer for one in read_groups(tmp_path / "samples") for answer in one["answers"]]
    assert {answer["logps"] for answer in answers} == {answer["kl"] for answer in answers} == {None}
    assert len(answers) == 8
