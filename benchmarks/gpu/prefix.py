"""A training step with the prompt shared (mask, split, flex) and duplicated, on models of published sizes, bf16.

Forward, loss and backward of all weights of the decoder, with gradient checkpointing, as recipes for these sizes have
it; the tower is frozen and its features are made once, so that what is compared is the decoder. Ways take turns.
"""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu.notebook import Notebook
from benchmarks.gpu.policies import answers, lay_out, policy_of, prompts
from benchmarks.harness import spread, timed_with_peak
from benchmarks.mixers import operations
from orlaif.policy import Policy
from orlaif.types import Completions, PromptBatch

#: Model, kind of clip, G, T.
POINTS = [
    ("qwen2.5-vl-3b", "long", 8, 128),
    ("qwen2.5-vl-3b", "short", 8, 128),
    ("qwen3.5-2b", "long", 8, 128),
    ("qwen3.5-2b", "short", 8, 128),
    ("qwen2.5-vl-3b", "long", 16, 128),
]
REHEARSED = [("qwen2.5-vl-least", "least", 2, 3), ("qwen3.5-least", "least", 2, 3)]
#: Log-probs in bf16 lie at most so far from the duplicated batch's, on average; in float32, in a rehearsal.
TOLERANCES = {True: 0.05, False: 1e-3}
REPEATS = 5


def run(notebook: Notebook) -> None:
    """One point after the other; a model is loaded once."""
    loaded: tuple[str, Policy | None] = ("", None)
    for size, clip, group, tokens in REHEARSED if notebook.rehearse else POINTS:

        def measured(size: str = size, clip: str = clip, group: int = group, tokens: int = tokens) -> dict[str, Any]:
            nonlocal loaded
            if loaded[0] != size:
                loaded = ("", None)
                gc.collect()
                loaded = (size, policy_of(size, notebook, freeze_vision=True, gradient_checkpointing=True))
            policy = loaded[1]
            assert policy is not None
            batch = prompts(policy, clip, 1, notebook.device)
            return point(policy, batch, answers(policy, batch, group, tokens), notebook)

        name = f"{size}, {clip}, {group} answers of {tokens}"
        notebook.measure(name, measured, 60)
        for who, row in notebook.entries.get(name, {}).get("results", {}).items():
            if "failed" in row:
                notebook.fail(f"{name}: {who}", row["failed"])


def step(policy: Policy, batch: PromptBatch, completions: Completions) -> None:
    """Forward, a policy gradient's loss, backward."""
    signs = torch.where(torch.arange(completions.group_size, device=completions.device) % 2 == 0, 1.0, -1.0)
    (policy.completion_logps(batch, completions) * signs[:, None]).mean().backward()


def agreement(policy: Policy, batch: PromptBatch, completions: Completions, ways: list[str]) -> dict[str, float]:
    """Of each way, the mean distance of log-probs from the duplicated batch's; only of those that run."""
    logps: dict[str, torch.Tensor] = {}
    for way in ways:
        lay_out(policy, way)
        with torch.no_grad():
            logps[way] = policy.completion_logps(batch, completions).float()
    return {way: float((found - logps["duplicate"]).abs().mean()) for way, found in logps.items()}


def point(policy: Policy, batch: PromptBatch, completions: Completions, notebook: Notebook) -> dict[str, Any]:
    """Milliseconds and peak of each way, and what counting multiply-adds gives for duplicated over shared."""
    ways = ["duplicate", "mask", "split", *(["flex"] if notebook.cuda else [])]
    model = policy.network.train()
    differs = agreement(policy, batch, completions, ways)
    rows: dict[str, dict[str, Any]] = {way: {"log_prob_difference": differs[way]} for way in ways}
    for way in ways:
        if not differs[way] <= TOLERANCES[notebook.cuda]:
            rows[way]["failed"] = f"log-probs differ by {differs[way]:.2g} from the duplicated batch's: no speed"
    times: dict[str, list[float]] = {way: [] for way in ways if "failed" not in rows[way]}
    for repeat in range((1 if notebook.rehearse else REPEATS) + 1):
        for way in list(times):
            lay_out(policy, way)
            model.zero_grad(set_to_none=True)
            gc.collect()
            try:
                taken, peak = timed_with_peak(lambda: step(policy, batch, completions), notebook.cuda)
            except torch.cuda.OutOfMemoryError:
                rows[way]["note"], _ = "out of memory", times.pop(way)
                torch.cuda.empty_cache()
                continue
            if repeat:
                times[way].append(taken)
                rows[way]["peak_bytes"] = max(peak, rows[way].get("peak_bytes", 0))
        if repeat and notebook.left() < 20 and not notebook.rehearse:
            break
    for way, taken_all in times.items():
        rows[way] |= spread(taken_all)
    model.zero_grad(set_to_none=True)
    seen = (batch.input_ids.shape[1], completions.ids.shape[-1], completions.group_size)
    decoder = SimpleNamespace(
        config=policy.network.config.get_text_config(),
        lm_head=policy.network.get_output_embeddings(),
        get_decoder=policy.network.get_decoder,
    )
    return {
        "prompt": seen[0],
        "answer": seen[1],
        "group": seen[2],
        "predicted": operations(decoder, seen, False) / operations(decoder, seen, True),
        "results": rows,
    }
