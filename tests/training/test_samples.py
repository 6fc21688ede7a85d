"""What a run keeps of its samples is what it trained on."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from orlaif.oracles import Exchange, Oracle
from orlaif.rollout import Rollout, SamplingParams
from orlaif.samples import read_groups
from orlaif.training.callbacks import KeepSamples
from orlaif.training.callbacks import samples as callback
from orlaif.training.judged import JudgedBatch
from orlaif.training.rlaif import OracleRLAIF
from orlaif.types import Completions, OracleError, Prompt, PromptBatch, Ranking, VideoClip
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
        assert seen["sheet"] is None  # the page shows them from the file
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
    with pytest.raises(ValueError, match=r"KeepSamples\.frames is 'webp'; it must be as_needed, always or never"):
        KeepSamples(frames="webp")  # type: ignore[arg-type]


def judged(clip: Any, prompt: Prompt | None = None) -> JudgedBatch:
    """One group of two answers."""
    ids = torch.tensor([[[5, 6], [7, 8]]])
    completions = Completions(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), texts=(("a", "b"),))
    batch = PromptBatch(
        prompts=(prompt or Prompt(id="p", question="what ?"),),
        clips=(clip,),
        input_ids=torch.ones(1, 2, dtype=torch.int64),
        attention_mask=torch.ones(1, 2, dtype=torch.int64),
        mm_inputs={},
    )
    ranking = Ranking(ranks=torch.tensor([[0, 1]]))
    about: dict[str, Any] = {"step": 0, "epoch": 0, "batch_idx": 0}
    return JudgedBatch(batch=batch, completions=completions, ranking=ranking, advantages=torch.zeros(1, 2), **about)


def kept(tmp_path: Path, keeper: KeepSamples, *batches: JudgedBatch) -> list[Any]:
    """As a run would have it, without one."""
    run = types.SimpleNamespace(fast_dev_run=0, default_root_dir=str(tmp_path))
    module = OracleRLAIF.__new__(OracleRLAIF)
    torch.nn.Module.__init__(module)
    module.policy = types.SimpleNamespace(  # type: ignore[assignment]
        processor=types.SimpleNamespace(tokenizer=types.SimpleNamespace(decode=str))
    )
    keeper.on_fit_start(run, module)  # type: ignore[arg-type]
    for one in batches:
        keeper.on_groups(run, module, one)  # type: ignore[arg-type]
    keeper.teardown(run, module, "fit")  # type: ignore[arg-type]
    return list(read_groups(tmp_path / "samples"))


def clip(path: str, seed: int = 0) -> VideoClip:
    frames = torch.randint(0, 256, (3, 3, 40, 60), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return VideoClip(frames=frames, pts_s=torch.arange(3, dtype=torch.float64), duration_s=3.0, path=path)


def test_frames_are_kept_where_no_file_has_them_or_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"a film")
    cases: list[tuple[KeepSamples, str, bool]] = [
        (KeepSamples(), "a.mp4", False),
        (KeepSamples(), "memory://7", True),
        (KeepSamples(frames="always"), "a.mp4", True),
        (KeepSamples(frames="never"), "memory://7", False),
    ]
    for number, (keeper, path, there) in enumerate(cases):
        folder = tmp_path / str(number)
        (one,) = kept(folder, keeper, judged(clip(path)))
        (seen,) = one["seen"]
        assert (seen["sheet"] is not None) == there
        assert seen["path"] == (str(tmp_path / "a.mp4") if path == "a.mp4" else path)
        assert (folder / "samples" / "frames").exists() == there
        if there:
            assert Image.open(folder / "samples" / "frames" / seen["sheet"]).size == (180, 40)


def test_frames_of_single_images_have_no_film_to_point_to(tmp_path: Path) -> None:
    """The path of such a prompt only names it, also where a file happens to be there."""
    (tmp_path / "a.mp4").write_bytes(b"a film")
    path = str(tmp_path / "a.mp4")
    prompt = Prompt(id="p", question="what ?", video=path, frames=("0.png", "1.png", "2.png"))
    (one,) = kept(tmp_path, KeepSamples(), judged(clip(path), prompt))
    assert one["seen"][0]["sheet"] is not None


def test_frames_count_into_the_limit(tmp_path: Path) -> None:
    """Forty clips and their groups want more than twice what is allowed."""
    batches = [judged(clip("made", i), Prompt(id=f"p{i}", question="what ? " * 500)) for i in range(40)]
    groups = kept(tmp_path, KeepSamples(limit_mb=0.1), *batches)
    files = [path for path in (tmp_path / "samples").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 100_000
    assert 0 < len(groups) < 40
    assert groups[-1]["prompt"]["id"] == "p39"
    assert (tmp_path / "samples" / "frames" / groups[-1]["seen"][0]["sheet"]).is_file()


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
