"""Sampling ahead: which weights a group comes from, what is broken off and goes on, and what overlaps with what."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from orlaif.cli.recipe import read_recipe
from orlaif.data.share import Share
from orlaif.distributed.checkpoint_io import newest_checkpoint
from orlaif.oracles import OracleFailure, ReferenceAnswerOracle
from orlaif.policy import Policy
from orlaif.rollout import ImportanceCorrection, Pipelined, Rollout, SamplingParams
from orlaif.training.callbacks import Checkpointing
from orlaif.types import CandidateGroup, Completions, OracleError, PromptBatch, Ranking
from tests import processes
from tests.conftest import REPO
from tests.processes import LORA, Job
from tests.training.test_resume_matrix import BrokenOffError, Lab, Watch, every_pair, name
from tests.training.test_rlaif import data, rlaif, trainer, weights

THREE = SamplingParams(max_new_tokens=3)


class Waiting(ReferenceAnswerOracle):
    """Waits a little, as for a server, and is therefore asked ahead."""

    mostly_waits = True

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        time.sleep(0.002)
        return super().rank(groups)


class AheadLab(Lab):
    """The same runs, with groups that are sampled ahead."""

    def make(self, stage: str) -> Any:
        oracle = ReferenceAnswerOracle() if stage == "turns" else Waiting()
        several = {"num_updates": 2} if stage == "num_updates" else {}
        rollout = Pipelined(Rollout(4, THREE), staleness=2 if stage == "two" else 1)
        return rlaif(self.model, eval_max_new_tokens=2, rollout=rollout, oracle=oracle, **several)


@pytest.fixture(scope="module")
def lab(tiny_model: str, data_root: str, tmp_path_factory: pytest.TempPathFactory) -> AheadLab:
    return AheadLab(tiny_model, data_root, tmp_path_factory.mktemp("ahead"))


STAGES = {"sft": "two", "rlaif": "ahead", "num_updates": "num_updates"}


def cases() -> list[dict[str, Any]]:
    return [{**case, "stage": STAGES[case["stage"]]} for case in every_pair()]


SHORT = cases()[::6]


@pytest.mark.parametrize("case", SHORT, ids=name)
def test_a_run_that_went_on_is_the_run_that_was_not_broken_off(case: dict[str, Any], lab: AheadLab) -> None:
    lab.check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in cases() if case not in SHORT], ids=name)
def test_all_that_may_break_a_run_off(case: dict[str, Any], lab: AheadLab) -> None:
    lab.check(case)


# ---------------------------------------------------------------- what is sampled, when, and by which weights


class Spy(Rollout):
    """Notes by which version of the weights each prompt is sampled, on which thread."""

    def __init__(self) -> None:
        super().__init__(4, THREE)
        self.seen: list[tuple[str, int, str]] = []

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Any) -> Completions:
        where = threading.current_thread().name
        self.seen += [(prompt.id, policy.version, where) for prompt in batch.prompts]
        return super().__call__(policy, batch, generator)


class Steps(Callback):
    """Notes the prompts of each batch, and the version of the weights that it is trained on."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rows += [(prompt.id, pl_module.policy.version) for prompt in batch.batch.prompts]


def run(folder: str, root: str, tmp_path: Path, rollout: Any, oracle: Any = None, **settings: Any) -> Any:
    module = rlaif(folder, rollout=rollout, oracle=oracle or Waiting(), **settings.pop("module", {}))
    trainer(tmp_path, **settings).fit(module, data(root, batch_size=2, seed=3, ahead=1))
    return module


def ages(spy: Spy, steps: Steps) -> list[int]:
    """How many updates old the weights were that each batch came from."""
    sampled = {prompt: version for prompt, version, _ in spy.seen}
    assert len(sampled) == len(spy.seen), "a prompt was sampled twice"
    return [version - sampled[prompt] for prompt, version in steps.rows[::2]]


@pytest.mark.parametrize(
    ("staleness", "accumulate", "expected"),
    [
        (0, 1, [0, 0, 0, 0, 0]),
        (1, 1, [0, 1, 1, 1, 1]),
        (2, 1, [0, 1, 2, 2, 2]),
        (1, 2, [0, 0, 1, 0, 1]),
        (3, 1, [0, 1, 2, 3, 3]),
    ],
)
def test_weights_are_as_old_as_stated(
    tiny_model: str, data_root: str, tmp_path: Path, staleness: int, accumulate: int, expected: list[int]
) -> None:
    """Nothing behind the limit is sampled; the age is in updates, and the first batches wait for none."""
    spy, steps, before = Spy(), Steps(), set(threading.enumerate())
    settings = {"max_epochs": 1, "limit_train_batches": 5, "accumulate_grad_batches": accumulate}
    run(tiny_model, data_root, tmp_path, Pipelined(spy, staleness), callbacks=[steps], **settings)
    assert ages(spy, steps) == expected
    assert {where for _, _, where in spy.seen} == {"orlaif-rollout" if staleness else "MainThread"}
    assert not any(thread.name == "orlaif-rollout" for thread in set(threading.enumerate()) - before)


def test_every_epoch_begins_with_the_weights_at_its_start(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    spy, steps = Spy(), Steps()
    run(tiny_model, data_root, tmp_path, Pipelined(spy), callbacks=[steps], max_epochs=2, limit_train_batches=3)
    versions = [version for _, version, _ in spy.seen][::2]
    assert [version - versions[0] for version in versions] == [0, 0, 1, 3, 3, 4]


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": ["q_proj"]}], ids=["full", "lora"])
def test_no_staleness_is_the_engine_alone(
    tiny_model: str, data_root: str, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    found = []
    for rollout in (Rollout(4, THREE), Pipelined(Rollout(4, THREE), 0)):
        module = rlaif(tiny_model, rollout=rollout)
        module.policy.lora = lora
        module.policy.reference.lora = lora
        trainer(tmp_path, max_steps=3).fit(module, data(data_root, batch_size=2, seed=3))
        found.append(weights(module))
    assert all(torch.equal(found[1][name], weight) for name, weight in found[0].items())


def test_with_an_adapter_the_copy_is_of_the_adapter_alone(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """And the groups in flight come from it: its values at the version that is stated, to the bit."""
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    module = rlaif(tiny_model, rollout=Pipelined(Rollout(4, THREE)), oracle=Waiting())
    module.policy.lora = module.policy.reference.lora = lora
    kept: dict[int, dict[str, torch.Tensor]] = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            kept[pl_module.policy.version] = weights(pl_module)

    trainer(tmp_path, max_steps=3, callbacks=[Look()]).fit(module, data(data_root, batch_size=2, seed=3))
    twin = module.rollout.engine._twin.policy
    own, theirs = dict(twin.network.named_parameters()), dict(module.policy.network.named_parameters())
    copied = {name for name in own if own[name] is not theirs[name]}
    assert copied == {name for name, p in theirs.items() if p.requires_grad}
    assert all(torch.equal(own[name], kept[twin.version][name]) for name in own)


class Meeting(ReferenceAnswerOracle):
    """Answers for a batch only once the step of the batch before it is under way: that of no other design would."""

    mostly_waits = True

    def __init__(self) -> None:
        super().__init__()
        self.training = [threading.Event() for _ in range(5)]
        self.asked = 0
        self.late: list[int] = []

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        number, self.asked = self.asked, self.asked + 1
        if number and not self.training[number - 1].wait(20):
            self.late.append(number)
        return super().rank(groups)


def test_the_oracle_answers_while_the_step_before_trains(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    oracle = Meeting()

    class Under(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            oracle.training[trainer.fit_loop.batch_idx].set()

    run(
        *(tiny_model, data_root, tmp_path, Pipelined(Rollout(4, THREE)), oracle),
        callbacks=[Under()],
        max_epochs=1,
        limit_train_batches=4,
        module={"order_consistency_every_n_steps": 0},
    )
    assert oracle.asked == 4
    assert oracle.late == []


class Failing(Waiting):
    """Fails with the third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        self.batches += 1
        if self.batches == 3:
            raise OracleError("Failing", groups[0].prompt.id, "on purpose")
        return super().rank(groups)


@pytest.mark.parametrize("staleness", [1, 2])
def test_an_error_of_the_oracle_comes_up_at_its_own_step(
    tiny_model: str, data_root: str, tmp_path: Path, staleness: int
) -> None:
    steps = Steps()
    with pytest.raises(OracleError, match="on purpose") as caught:
        run(
            *(tiny_model, data_root, tmp_path, Pipelined(Rollout(4, THREE), staleness), Failing()),
            module={"on_oracle_failure": OracleFailure(action="error"), "order_consistency_every_n_steps": 0},
            callbacks=[steps],
            max_epochs=1,
            limit_train_batches=5,
        )
    assert [version for _, version in steps.rows] == [steps.rows[0][1] + i for i in (0, 0, 1, 1, 2, 2)]
    assert caught.value.prompt_id == steps.rows[4][0]


class Broken(Rollout):
    """Cannot sample the third batch."""

    calls = 0

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Any) -> Completions:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("out of memory, on purpose")
        return super().__call__(policy, batch, generator)


def test_an_error_of_the_rollout_comes_up_at_its_own_step(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    steps = Steps()
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tiny_model, data_root, tmp_path, Pipelined(Broken(4, THREE), 2), callbacks=[steps], max_epochs=1)
    assert len(steps.rows) == 6


def test_an_oracle_that_computes_takes_turns_and_the_log_says_so(
    tiny_model: str, data_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where: list[str] = []

    class Computing(ReferenceAnswerOracle):
        def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
            where.append(threading.current_thread().name)
            return super().rank(groups)

    with caplog.at_level("INFO", logger="orlaif"):
        run(tiny_model, data_root, tmp_path, Pipelined(Rollout(4, THREE)), Computing(), max_steps=2)
    assert set(where) == {"MainThread"}
    assert "oracle Computing computes where the step does: they take turns" in caplog.text


def test_what_cannot_be_sampled_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout\.staleness is -1; it must be 0 \(off\) or more batches"):
        Pipelined(Rollout(), -1)
    with pytest.raises(ValueError, match=r"rollout\.engine is Pipelined, which samples ahead itself"):
        Pipelined(Pipelined(Rollout()))
    with pytest.raises(ValueError, match=r"rollout\.engine\.compile_decode is true"):
        Pipelined(Rollout(compile_decode=True))
    assert Pipelined(Rollout(compile_decode=True), 0).staleness == 0


def test_a_precision_that_all_threads_have_in_common_is_refused(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"trainer\.precision sets torch's default dtype"):
        run(tiny_model, data_root, tmp_path, Pipelined(Rollout(4, THREE)), max_steps=1, precision="bf16-true")


# ------------------------------------------------------------------------------ batches and processes that differ


def test_groups_in_flight_are_found_in_batches_of_another_size(lab: AheadLab, tmp_path: Path) -> None:
    """A checkpoint of batches of two; the run that goes on, in batches of four, trains on the very groups."""
    case = {"stage": "two", "data": "map", "accumulate": 1, "validate": None}
    with pytest.raises(BrokenOffError):
        lab.run(case, Watch("steps", (0, 2)), [Checkpointing(1, dirpath=str(tmp_path))])
    path = newest_checkpoint(tmp_path)
    held = {group["prompt_id"]: group for group in torch.load(path)["in_flight"]}
    assert len(held) == 4  # two batches of two, begun at steps 0 and 1
    found: dict[str, Completions] = {}

    class Look(Watch):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            for job in pl_module.ahead._jobs.values() if not found else ():
                if job.used_at is not None:
                    found.update(
                        {
                            p.id: job.sampled.result().completions.of_prompts(torch.tensor([i]))
                            for i, p in enumerate(job.batch.prompts)
                        }
                    )

    rest = Look()
    lab.run(case, rest, [], resume=path, batch_size=4)
    assert rest.rows[0][3] == tuple(held)
    for prompt, group in held.items():
        assert torch.equal(found[prompt].ids[0][:, : group["ids"].shape[1]][group["mask"]], group["ids"][group["mask"]])
        assert found[prompt].texts[0] == group["texts"]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("lora", [None, pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_two_processes_go_on_as_well(
    tiny_model: str, data_root: str, tmp_path: Path, strategy: str, lora: dict[str, Any] | None
) -> None:
    """Process 1 has lost all videos of its second batch."""
    source = data(data_root, 4)
    rows: Any = source.datasets["train"]
    rows.load()
    order = [prompt.id for prompt in rows.epoch(0, source.seed, Share(), False, None)]
    lost = (order[5], order[7])
    settings: dict[str, Any] = {"folder": tiny_model, "root": data_root, "strategy": strategy, "lora": lora, "batch": 4}
    settings |= {"staleness": 2, "rate": 0.5, "bad": {0: lost, 1: lost}, "trainer": {"accumulate_grad_batches": 2}}
    settings["data"] = {"on_bad_video": "skip", "max_bad_rate": 1.0}

    def job(name: str, **more: Any) -> Job:
        (tmp_path / name).mkdir()
        return Job(**settings, out=str(tmp_path / name / "out.pt"), **more)

    whole = processes.run(job("whole", steps=4), 2)
    processes.run(job("first", steps=2, save_every=1), 2)
    path = newest_checkpoint(tmp_path / "first" / "checkpoints")
    rest = processes.run(job("rest", steps=4, resume=str(path)), 2)
    assert all(torch.equal(rest["weights"][name], weight) for name, weight in whole["weights"].items())
    assert rest["totals"] == whole["totals"]
    assert whole["totals"]["data/bad_videos"] == 2


def test_a_recipe_is_given_another_rollout_by_an_overlay(tmp_path: Path) -> None:
    (tmp_path / "ahead.yaml").write_text(
        """
model:
  class_path: orlaif.OracleRLAIF
  init_args:
    rollout:
      class_path: orlaif.rollout.Pipelined
      init_args:
        staleness: 2
        engine: {class_path: orlaif.rollout.Rollout, init_args: {group_size: 6, sampling: {max_new_tokens: 5}}}
"""
    )
    recipe = str(REPO / "recipes" / "demo_rlaif.yaml")
    module = read_recipe(["--config", recipe, "--config", str(tmp_path / "ahead.yaml"), f"--run_dir={tmp_path}"]).model
    assert (module.batches_ahead, module.rollout.group_size, module.rollout.sampling.max_new_tokens) == (2, 6, 5)
    assert module.rollout.correction == ImportanceCorrection()
