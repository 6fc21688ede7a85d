"""Groups that teach nothing are set aside: what is trained on, what counts, how a run goes on, and the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.rollout import Pipelined, Rollout, SamplingParams
from orlaif.training.dynamic_sampling import DynamicSampling, in_order
from orlaif.types import Completions
from tests import processes
from tests.training.test_resume_matrix import Lab, Watch
from tests.training.test_rlaif import ByText, Recorder, Scripted, data, rlaif, trainer


class InOrder:
    """A curriculum of given rows."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def order(self, dataset: Any, seed: int) -> list[int]:
        return list(self.rows)


class Tied(Scripted):
    """The answers to every n-th prompt differ; to the others, all are alike.

    Args:
        every: n; 0: all are alike.
    """

    def __init__(self, every: int) -> None:
        super().__init__(group_size=4, sampling=SamplingParams(max_new_tokens=4, temperature=1.5))
        self.every = every

    def __call__(self, policy: Any, batch: Any, generator: Any) -> Completions:
        free = super().__call__(policy, batch, generator)
        ids, texts = free.ids.clone(), list(free.texts)
        for i, prompt in enumerate(batch.prompts):
            if not self.every or int(prompt.id.split("-")[1]) % self.every:
                ids[i] = ids[i, :1]
                texts[i] = texts[i][:1] * 4
        return Completions(ids=ids, mask=free.mask, texts=tuple(texts))


def run(model: str, root: str, folder: Path, rows: Any, size: int, rollout: Any, **settings: Any) -> Recorder:
    """The gradients and metrics of two steps, or of as many as ``steps`` says."""
    recorder, steps = Recorder(), settings.pop("steps", 2)
    options = {"max_steps": steps, "callbacks": [recorder], **settings.pop("trainer", {})}
    module = rlaif(model, rollout=rollout, oracle=ByText(), **settings)
    recorder.module = module  # type: ignore[attr-defined]
    trainer(folder, **options).fit(module, data(root, size, curriculum=InOrder(rows)))
    return recorder


def same(one: Recorder, other: Recorder, tolerance: float = 1e-6) -> bool:
    assert len(one.grads) == len(other.grads)
    return all(
        torch.allclose(a[name], b[name], rtol=0, atol=tolerance)
        for a, b in zip(one.grads, other.grads, strict=True)
        for name in b
    )


GROUPS = ("batches", "sampled", "set_aside", "surplus", "trained")


def counts(metrics: dict[str, float]) -> list[float]:
    return [metrics[f"groups/{name}"] for name in GROUPS]


def test_the_step_is_that_of_the_groups_that_teach(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """Of rows 0, 1, 2, ... every third teaches: 0, 3, 6, 9 are the first step's, and row 11 goes the same way."""
    expected = run(tiny_model, data_root, tmp_path, (0, 3, 6, 9, 12, 15, 18, 21), 4, Tied(1))
    found = run(tiny_model, data_root, tmp_path, range(64), 4, Tied(3), dynamic_sampling=DynamicSampling())
    assert same(found, expected)
    steps = [m for m in found.metrics if "groups/batches" in m]
    assert counts(found.metrics[2]) == counts(steps[0]) == [3, 12, 8, 0, 4]
    assert steps[0]["groups/set_aside_rate"] == pytest.approx(2 / 3)
    assert found.metrics[2]["train/loss"] != 0


@pytest.mark.parametrize("updates", [1, 2])
def test_accumulated_batches_and_a_surplus(tiny_model: str, data_root: str, tmp_path: Path, updates: int) -> None:
    """Two batches of two make a step: rows 0, 2, 4, 6 of batches 0-1, 2-3, 4-5, 6-7; of three, row 8 is left over."""
    settings: dict[str, Any] = {"num_updates": updates, "steps": 1}
    expected = run(tiny_model, data_root, tmp_path, (0, 2, 4, 6), 4, Tied(1), **settings)
    settings |= {"dynamic_sampling": DynamicSampling(max_batches=5)}
    accumulated = {"accumulate_grad_batches": 2}
    found = run(tiny_model, data_root, tmp_path, range(64), 2, Tied(2), trainer=accumulated, **settings)
    assert same(found, expected)
    assert counts(found.metrics[-1]) == [4, 8, 4, 0, 4]
    found = run(tiny_model, data_root, tmp_path, (1, 0, 2, 3, 4, 6, 8, 5), 3, Tied(2), steps=1,
                dynamic_sampling=DynamicSampling())  # fmt: skip
    assert counts(found.metrics[-1]) == [2, 6, 2, 1, 3]


def test_where_all_groups_teach_nothing_changes(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    plain = run(tiny_model, data_root, tmp_path, range(64), 4, Tied(1))
    found = run(tiny_model, data_root, tmp_path, range(64), 4, Tied(1), dynamic_sampling=DynamicSampling())
    assert same(found, plain, 0)
    assert counts(found.metrics[-1]) == [1, 4, 0, 0, 4]


def test_at_the_limit(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """Row 0 is the only one of the first eight that teaches; where none does, the gradients are zero."""
    expected = run(tiny_model, data_root, tmp_path, (0, 9), 1, Tied(1), steps=1)
    two = DynamicSampling(max_batches=2)
    found = run(tiny_model, data_root, tmp_path, range(64), 4, Tied(9), steps=1, dynamic_sampling=two)
    assert same(found, expected)
    assert counts(found.metrics[-1]) == [2, 8, 7, 0, 1]
    found = run(tiny_model, data_root, tmp_path, range(64), 4, Tied(0), steps=1, dynamic_sampling=two)
    assert counts(found.metrics[-1]) == [2, 8, 8, 0, 0]
    assert all(not bool(grad.any()) for grad in found.grads[0].values())
    strict = DynamicSampling(max_batches=2, at_limit="error")
    with pytest.raises(ValueError, match="of the 8 groups in these batches 1 teach, where a step needs 4"):
        run(tiny_model, data_root, tmp_path, range(64), 4, Tied(9), steps=1, dynamic_sampling=strict)


def test_the_end_of_an_epoch_is_the_end_of_a_step(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    limits = {"limit_train_batches": 2, "max_epochs": 2}
    found = run(tiny_model, data_root, tmp_path, range(64), 4, Tied(3), steps=-1, trainer=limits,
                dynamic_sampling=DynamicSampling())  # fmt: skip
    assert len(found.grads) == 2
    assert counts(found.metrics[-1]) == [2, 8, 5, 0, 3]


def test_refused_settings(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_batches is 0; it must be 1 or more"):
        DynamicSampling(max_batches=0)
    with pytest.raises(ValueError, match="at_limit is 'stop'; it must be 'train' or 'error'"):
        DynamicSampling(at_limit="stop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"max_batches is 2; it must be 3 or more, the number of trainer.accumulate"):
        run(tiny_model, data_root, tmp_path, range(64), 4, Tied(1), trainer={"accumulate_grad_batches": 3},
            dynamic_sampling=DynamicSampling(max_batches=2))  # fmt: skip


def test_the_order_of_groups_is_that_of_the_epoch() -> None:
    """Rows 0, 2, 4 go to the first process, and 1, 3, 5 to the second."""
    assert in_order([[True, False, True], [False, True, True]]) == [(0, 0), (1, 1), (2, 0), (2, 1)]
    assert in_order([[], [True]]) == [(0, 1)]
    assert in_order([]) == []


@pytest.mark.parametrize(
    ("strategy", "updates"),
    [("ddp", 2), pytest.param("ddp", 1, marks=pytest.mark.slow), pytest.param("fsdp2", 1, marks=pytest.mark.slow)],
)
def test_two_processes_train_on_the_groups_of_one(
    tiny_model: str, data_root: str, tmp_path: Path, strategy: str, updates: int
) -> None:
    """Every third row teaches, so that some batches of a process teach nothing, and the processes' shares differ."""
    settings = {"dynamic_sampling": DynamicSampling(max_batches=4), "num_updates": updates}
    job: dict[str, Any] = {"folder": tiny_model, "root": data_root, "rollout": Tied(3), "module": settings, "batch": 4}
    one, two = (
        processes.run(
            processes.Job(out=str(tmp_path / f"{world}.pt"), strategy=strategy if world > 1 else "auto", **job), world
        )
        for world in (1, 2)
    )
    for name, weight in one["weights"].items():
        assert torch.allclose(two["weights"][name], weight, atol=1e-6)
    of_one, of_two = ([counts(m) for m in run["metrics"] if "groups/batches" in m] for run in (one, two))
    assert of_one == of_two
    assert of_one[-1][0] > 1
    assert one["totals"] == two["totals"]


class DynamicLab(Lab):
    """Of the matrix of resumed runs, with dynamic sampling in the stages."""

    def make(self, stage: str) -> Any:
        rollout: Any = Rollout(group_size=3, sampling=SamplingParams(max_new_tokens=2, temperature=1.5))
        if stage == "ahead":
            rollout = Pipelined(rollout, 1)
        several = {"num_updates": 2} if stage == "num_updates" else {}
        dynamic = DynamicSampling(max_batches=4)
        oracle = HalfOfThem()
        return rlaif(
            self.model, eval_max_new_tokens=2, rollout=rollout, oracle=oracle, dynamic_sampling=dynamic, **several
        )


class HalfOfThem(ByText):
    """Has no opinion of every other prompt."""

    def rank(self, groups: Any) -> Any:
        ranking = super().rank(groups)
        for i, group in enumerate(groups):
            if int(group.prompt.id.split("-")[1]) % 2:
                ranking.ranks[i] = 0
        return ranking


@pytest.fixture(scope="module")
def lab(tiny_model: str, data_root: str, tmp_path_factory: pytest.TempPathFactory) -> DynamicLab:
    return DynamicLab(tiny_model, data_root, tmp_path_factory.mktemp("dynamic"))


@pytest.mark.parametrize(
    ("way", "stage", "kind", "accumulate", "validate", "cut"),
    [
        pytest.param(*("steps", "rlaif", "map", 1, None, (1, 3)), marks=pytest.mark.slow),
        ("exception", "rlaif", "stream", 1, 3, (1, 5)),
        ("in_step", "rlaif", "map", 2, None, (1, 3)),
        ("sigterm", "num_updates", "map", 1, 3, (1, 1)),
        pytest.param(*("epoch", "num_updates", "stream", 2, 1.0, (2, 0)), marks=pytest.mark.slow),
        ("exception", "ahead", "map", 1, 3, (1, 3)),
        pytest.param(*("steps", "ahead", "map", 2, None, (2, 5)), marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    lab: DynamicLab, way: str, stage: str, kind: str, accumulate: int, validate: Any, cut: tuple[int, int]
) -> None:
    case = {"way": way, "stage": stage, "data": kind, "accumulate": accumulate, "validate": validate, "cut": cut}
    lab.check(case)
    whole: Watch = lab.uninterrupted(case)[0]
    assert whole.rows[-1][2] < len(whole.rows) / accumulate - 1  # some steps took several batches
