"""The paper's penalty in each reading, in a bandit: nothing but the mapping decides where the policy goes.

64 prompts of 20 arms, whose qualities are normal; the policy is a table of logits from zero. At each of 200 steps
every prompt's policy samples 5 arms, an exact oracle ranks them by quality, and the logits follow the policy gradient
of a mapping's advantages, with steps of one length for all mappings, so that none wins by its scale. The figure is the
mean quality of what the policy samples, before and after; mean over seeds with a 95 % interval (Student's t):

    .venv/bin/python -m benchmarks.penalty_bandit [--seeds 8] [--output outputs/penalty_bandit.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from orlaif_kernels.mappings import Gain, borda, dcg, gain_of, ndcg_penalty, zscore
from torch import Tensor

from benchmarks.harness import about, installed
from benchmarks.significance import interval

PROMPTS, ARMS, GROUP, STEPS = 64, 20, 5, 200
#: Length of a prompt's every step in logits.
STEP = 0.1

#: From ranks i64[P, G], log-probs and qualities f32[P, G] of the sampled arms to advantages f32[P, G].
Mapping = Callable[[Tensor, Tensor, Tensor], Tensor]


def appendix_dcg(ranks: Tensor, logps: Tensor, quality: Tensor) -> Tensor:
    """``dcg`` with the gain of the appendix."""
    first = (ranks.unsqueeze(-2) < ranks.unsqueeze(-1)).sum(-1)
    gains = gain_of(first, "appendix")
    return (gains - gains.mean(-1, keepdim=True)).float()


def penalty(gain: Gain, quotient: str) -> Mapping:
    """The penalty of one reading."""
    return lambda ranks, logps, quality: ndcg_penalty(ranks, logps, gain, quotient)  # type: ignore[arg-type]


MAPPINGS: dict[str, Mapping] = {
    "dcg": lambda ranks, logps, quality: dcg(ranks),
    "dcg, appendix's gain": appendix_dcg,
    "borda": lambda ranks, logps, quality: borda(ranks),
    "zscore": lambda ranks, logps, quality: zscore(quality),
    **{
        f"ndcg_penalty, {gain}, {quotient}": penalty(gain, quotient)
        for quotient in ("literal", "reversed")
        for gain in ("text", "appendix")
    },
}


def run(mapping: Mapping, seed: int) -> tuple[float, float, float]:
    """Mean quality of the policy's arms before the first step and after the last, and of the best arms."""
    generator = torch.Generator().manual_seed(seed)
    quality = torch.randn(PROMPTS, ARMS, generator=generator)
    logits = torch.zeros(PROMPTS, ARMS)
    before = float((logits.softmax(-1) * quality).sum(-1).mean())
    for _ in range(STEPS):
        probs = logits.softmax(-1)
        arms = torch.multinomial(probs, GROUP, replacement=True, generator=generator)
        seen = quality.gather(1, arms)
        # Equal arms of a group are one answer: they tie.
        ranks = (seen.unsqueeze(-2) > seen.unsqueeze(-1)).sum(-1)
        advantages = mapping(ranks, probs.log().gather(1, arms), seen)
        gradient = torch.zeros_like(logits).scatter_add(1, arms, advantages) - probs * advantages.sum(-1, keepdim=True)
        logits += STEP * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return before, float((logits.softmax(-1) * quality).sum(-1).mean()), float(quality.amax(-1).mean())


def main() -> None:
    """Run all mappings over the seeds, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--output", default="outputs/penalty_bandit.json")
    arguments = parser.parse_args()
    ends = {name: [run(mapping, seed) for seed in range(arguments.seeds)] for name, mapping in MAPPINGS.items()}
    table = {name: interval([after for _, after, _ in runs]) for name, runs in ends.items()}
    start, _, best = (interval(values) for values in zip(*ends["dcg"], strict=True))
    report = {
        "what": "mean quality of a bandit policy's arms after training, by mapping; mean and half a 95 % interval",
        "prompts": PROMPTS,
        "arms": ARMS,
        "group": GROUP,
        "steps": STEPS,
        "step": STEP,
        "seeds": arguments.seeds,
        "start": start,
        "best": best,
        "table": table,
        **about(cuda=False),
        "versions": installed("torch"),
    }
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"start {start[0]:+.2f}, best arms {best[0]:+.2f}\n\n| | mean quality |\n|---|---|")
    for name, (mean, half) in table.items():
        print(f"| `{name}` | {mean:+.2f} ± {half:.2f} |")


if __name__ == "__main__":
    main()
