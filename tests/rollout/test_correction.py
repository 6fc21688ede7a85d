"""Importance correction: against TRL's own formulas, by literal numbers, and how weights drift with length."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor

from orlaif.rollout import ImportanceCorrection, Rollout
from orlaif.rollout.vllm import VLLMRollout

MODES = [(level, kind) for level in ("token", "sequence") for kind in ("truncate", "mask")]
#: Two answers to one prompt, of four tokens and of two.
SAMPLERS = torch.tensor([[[-1.0, -0.5, -2.0, -0.1], [-1.5, -0.25, torch.nan, torch.nan]]])
#: Quotients 1, e^0.5, e^-1, e^1 and e^-0.75, e^0.25.
TRAINERS = SAMPLERS + torch.tensor([[[0.0, 0.5, -1.0, 1.0], [-0.75, 0.25, 0.0, 0.0]]])
MASK = torch.tensor([[[True, True, True, True], [True, True, False, False]]])


def weights(correction: ImportanceCorrection) -> Tensor:
    return correction.bounded(correction.ratios(TRAINERS, SAMPLERS, MASK))


def trls(level: str, kind: str, low: float | None, high: float | None, trainers: Tensor, samplers: Tensor) -> Tensor:
    """The lines of TRL's trainer that make its weights, run as they stand; [B, T] or [B, 1]."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    lines = inspect.getsource(grpo_trainer.GRPOTrainer).splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith("per_token_logps_diff = (old_per"))
    last = next(i for i, line in enumerate(lines) if i > first and "raise ValueError" in line)
    settings = {"mode": f"{level}_{kind}", "clip_min": low, "clip_max": high}

    class Trainer:
        """What those lines ask of the trainer."""

    for name, value in settings.items():
        setattr(Trainer, f"vllm_importance_sampling_{name}", value)
    names: dict[str, Any] = {"self": Trainer, "torch": torch, "math": __import__("math")}
    names |= {"old_per_token_logps": trainers, "sampling_per_token_logps": samplers, "mask": 1.0}
    exec(textwrap.dedent("\n".join([*lines[first:last], " " * 20 + "raise ValueError"])), names)
    return names["vllm_importance_sampling_ratio"]


@pytest.mark.parametrize(("level", "kind"), MODES)
@pytest.mark.parametrize("bounds", [(None, 2.0), (0.5, 5.0), (0.5, None), (0.4, 1.5)])
def test_weights_are_trls(level: Any, kind: Any, bounds: tuple[float | None, float | None]) -> None:
    generator = torch.Generator().manual_seed(0)
    samplers = -torch.rand(3, 4, 9, generator=generator)
    trainers = samplers + 0.4 * torch.randn(3, 4, 9, generator=generator)
    everything = torch.ones(3, 4, 9, dtype=torch.bool)
    correction = ImportanceCorrection(level=level, kind=kind, low=bounds[0], high=bounds[1])
    ours = correction.bounded(correction.ratios(trainers, samplers, everything))
    theirs = trls(level, kind, *bounds, trainers.flatten(0, 1), samplers.flatten(0, 1)).expand(12, 9)
    assert 0 < int(correction.outside(correction.ratios(trainers, samplers, everything)).sum()) < 108
    torch.testing.assert_close(ours.flatten(0, 1), theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[1.0, 1.6487, 0.3679, 2.0], [0.4724, 1.2840, 1.0, 1.0]]),
        ({"low": 0.5}, [[1.0, 1.6487, 0.5, 2.0], [0.5, 1.2840, 1.0, 1.0]]),
        ({"kind": "mask"}, [[1.0, 1.6487, 0.3679, 0.0], [0.4724, 1.2840, 1.0, 1.0]]),
        ({"kind": "icepop", "low": 0.5, "high": 5.0}, [[1.0, 1.6487, 0.0, 2.7183], [0.0, 1.2840, 1.0, 1.0]]),
        ({"level": "sequence", "high": 1.5}, [[1.5] * 4, [0.6065] * 4]),
        ({"level": "sequence", "kind": "mask", "low": 0.7}, [[1.6487] * 4, [0.0] * 4]),
        ({"high": None}, [[1.0, 1.6487, 0.3679, 2.7183], [0.4724, 1.2840, 1.0, 1.0]]),
    ],
)
def test_weights_by_numbers(settings: dict[str, Any], expected: list[list[float]]) -> None:
    """What is masked, NaN here, is not looked at."""
    torch.testing.assert_close(weights(ImportanceCorrection(**settings)), torch.tensor([expected]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("length", "product"), [(256, 0.98), (1024, 0.82), (4096, 0.46)])
def test_a_product_sinks_with_the_length_of_an_answer(length: int, product: float) -> None:
    """An unbiased mismatch of 0.03 a token: E[w] = 1 at each length, before the bound."""
    generator = torch.Generator().manual_seed(0)
    trainers = 0.03 * torch.randn(1, 4000, length, generator=generator) - 0.03**2 / 2
    mask = torch.ones(1, 4000, length, dtype=torch.bool)
    means = {}
    for level in ("sequence", "token"):
        correction = ImportanceCorrection(level=level)  # type: ignore[arg-type]
        means[level] = float(correction.bounded(correction.ratios(trainers, torch.zeros(()), mask)).mean())
    assert means["sequence"] == pytest.approx(product, abs=0.02)
    assert means["token"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"level": "answer"}, r"rollout.correction.level is 'answer'; it must be one of token, sequence"),
        ({"kind": "clip"}, r"rollout.correction.kind is 'clip'; it must be one of truncate, mask, icepop"),
        ({"low": 1.5}, r"rollout.correction.low is 1.5; it must lie in \[0, 1\)"),
        ({"high": 0.5}, r"rollout.correction.high is 0.5; it must be 1 or more"),
        ({"alarm": 0.0}, r"rollout.correction.alarm is 0.0; it must be above 0 nats"),
        ({"kind": "icepop"}, r"'icepop', which needs both bounds, such as low: 0.5, high: 5"),
        ({"kind": "icepop", "low": 0.5, "level": "sequence"}, r"'icepop', which is of tokens"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImportanceCorrection(**settings)


def test_a_cap_is_the_default_correction_at_another_bound() -> None:
    assert Rollout(importance_cap=3.0).correction == ImportanceCorrection(high=3.0)
    assert Rollout().correction is None
    masked = ImportanceCorrection(kind="mask")
    assert Rollout(importance_cap=3.0, correction=masked).correction == masked
    assert VLLMRollout().correction == ImportanceCorrection(level="token", kind="truncate", low=None, high=2.0)
    assert VLLMRollout(importance_cap=None).correction is None
    with pytest.raises(ValueError, match=r"rollout.importance_cap is 0.5; it must be 1 or more, or null"):
        Rollout(importance_cap=0.5)
