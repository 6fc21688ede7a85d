"""The cost of a group: a training step and a rollout with the prompt shared, beside the duplicated batch and others.

    .venv/bin/python -m benchmarks.step [--output benchmarks/results/step_<machine>.json] [--points 512,16,5 ...]
    .venv/bin/python -m benchmarks.step --family qwen3_5 [--output ...]     (or gemma4; benchmarks.mixers)

One language model (Qwen2 architecture, random weights), one prompt of P tokens, G answers of A tokens. All candidates
do the work of one optimizer step without the optimizer: forward, loss, backward.

    duplicate        orlaif with prefix: duplicate
    mask, split      orlaif with prefix: shared, each attention (flex besides on CUDA)
    trl              TRL's GRPOTrainer: its own _compute_loss on the batch of G rows
    prefix_grouper   the prefix_grouper package's layout and attention, on sdpa, under the same loss

Log-probs of all candidates are first held against each other; one that differs gets no speed. Candidates take turns in
one run, medians over the repetitions. ``predicted`` is the ratio that counting floating-point operations gives. For the
rollout, ``generate`` of transformers on the duplicated batch (what TRL runs without vLLM) is the baseline. Writes JSON
and a plot beside it.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.harness import about, installed, seconds, spread, timed_with_peak
from benchmarks.mixers import FAMILIES, family_model, measure_family, show_family
from benchmarks.mixers import POINTS as FAMILY_POINTS
from orlaif.losses import grpo_rank_loss
from orlaif.policy import Policy
from orlaif.policy.prefix.attention import enable_grouping
from orlaif.policy.prefix.choice import PrefixChoice
from orlaif.rollout import SamplingParams, generate
from orlaif.rollout.local import prefill
from orlaif.types import Completions, PromptBatch, VideoClip, VideoPrompt

#: (P, A, G)
POINTS = [(512, 16, 5), (1024, 32, 8), (2048, 32, 8), (2048, 32, 16), (8192, 256, 8)]
#: At a fixed prompt, the cost against G.
GROUP_SIZES = [(2048, 32, g) for g in (2, 4, 8, 16)]
#: Rows of the duplicated batch that fit the memory of a CPU machine; more are done one part after the other.
MAX_ROWS = {8192: 2}
#: (prompts, prompt tokens, answers, answer tokens) around the size from which ``auto`` takes ``split``.
PARTS = ["steps", "groups", "rollouts", "choices"]
CHOICES = [(32, 60, 8, 3), (8, 128, 8, 8), (8, 256, 8, 8), (4, 256, 8, 16), (4, 512, 8, 16), (1, 1024, 8, 16)]
SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "vocab_size": 8000},
    # As many weights to a hidden unit as Qwen2.5-VL 3B has, where attention is a smaller part of the work.
    "wide": {"hidden_size": 1024, "intermediate_size": 5504, "num_hidden_layers": 4, "vocab_size": 8000},
    "tiny": {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 1000},
    "cuda": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 151936},
}


class TextPolicy(Policy):
    """A policy around a language model without a vision tower, so that all candidates can run it."""

    def __init__(self, model: Any, prefix: Any, attentions: tuple[str, ...]) -> None:
        super().__init__("text", dtype=str(model.dtype).removeprefix("torch."), prefix=prefix)
        self.model = model
        is_shared = prefix == "shared"
        self.choice = PrefixChoice(layout=prefix, attentions=attentions if is_shared else (), shares_cache=is_shared)
        self.decoded = SimpleNamespace(tokenizer=SimpleNamespace(batch_decode=self._texts, pad_token_id=0))

    @staticmethod
    def _texts(rows: list[list[int]], **settings: Any) -> list[str]:
        return ["" for _ in rows]

    @property
    def processor(self) -> Any:
        """No text is read here."""
        return self.decoded

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """None: every answer has its full length."""
        return (-1,)


def language_model(device: str, size_name: str | None = None) -> Any:
    """The model that all candidates run, by default that of the machine; ``tiny`` has the decoder of the demo."""
    torch.manual_seed(0)
    size = SIZES[size_name or device]
    head, share = (16, 2) if size_name == "tiny" else (64, 4)
    config = Qwen2Config(
        num_attention_heads=size["hidden_size"] // head,
        num_key_value_heads=size["hidden_size"] // head // share,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        **size,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = Qwen2ForCausalLM(config)
    return model.to(device, dtype)


def operations(point: tuple[int, int, int], size_name: str, shared: bool) -> float:
    """Multiply-adds of a forward pass: matrices for every token, scores for every pair that attends, the LM head."""
    p, a, g = point
    size = SIZES[size_name]
    hidden, layers = size["hidden_size"], size["num_hidden_layers"]
    per_token = layers * (2.5 * hidden**2 + 3 * hidden * size["intermediate_size"])  # a quarter as many key heads
    if shared:
        tokens, pairs = p + g * a, p * p / 2 + g * (a * p + a * a / 2)
    else:
        tokens, pairs = g * (p + a), g * (p + a) ** 2 / 2
    return tokens * per_token + 2 * layers * hidden * pairs + g * a * hidden * size["vocab_size"]


def inputs(point: tuple[int, int, int], device: str, vocabulary: int) -> tuple[PromptBatch, Completions, Tensor]:
    """One random prompt, its answers, and their advantages."""
    p, a, g = point
    generator = torch.Generator().manual_seed(1)
    clip = VideoClip(
        frames=torch.zeros(2, 3, 2, 2, dtype=torch.uint8),
        pts_s=torch.tensor([0.0, 1.0], dtype=torch.float64),
        duration_s=2.0,
        path="none",
    )
    batch = PromptBatch(
        prompts=(VideoPrompt(id="0", video="none", question="none"),),
        clips=(clip,),
        input_ids=torch.randint(1, vocabulary, (1, p), generator=generator),
        attention_mask=torch.ones(1, p, dtype=torch.long),
        mm_inputs={},
    ).to(device)
    completions = Completions(
        ids=torch.randint(1, vocabulary, (1, g, a), generator=generator).to(device),
        mask=torch.ones(1, g, a, dtype=torch.bool, device=device),
        texts=(("",) * g,),
    )
    return batch, completions, torch.randn(g, generator=generator).to(device)


def parts(completions: Completions, advantages: Tensor, rows: int) -> list[tuple[Completions, Tensor]]:
    """The group in parts of at most ``rows`` answers."""
    pieces = []
    for ids, part in zip(completions.ids.split(rows, 1), advantages.split(rows), strict=True):
        texts = (("",) * ids.shape[1],)
        mask = torch.ones_like(ids, dtype=torch.bool)
        pieces.append((Completions(ids=ids, mask=mask, texts=texts), part))
    return pieces


# ----------------------------------------------------------------------------------------------------------- candidates


class Candidate:
    """``step(part)``: forward, loss, backward; ``logps()``: f32[G, A]; ``model``: whose gradients it leaves."""

    def __init__(self, model: Any, split_group: bool) -> None:
        self.model = model
        self.split_group = split_group

    def logps(self, batch: PromptBatch, completions: Completions) -> Tensor:
        """Log-probs of the answers."""
        raise NotImplementedError

    def loss(self, batch: PromptBatch, completions: Completions, advantages: Tensor) -> Tensor:
        """The GRPO loss of (a part of) the group, summed over tokens."""
        raise NotImplementedError


class Ours(Candidate):
    """orlaif, by prefix and attention."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__(model, name == "duplicate")
        layout = name if name in ("duplicate", "fork") else "shared"
        self.policy = TextPolicy(model, layout, (name,))

    def logps(self, batch: PromptBatch, completions: Completions) -> Tensor:
        """See :class:`Candidate`."""
        return self.policy.completion_logps(batch, completions)[0]

    def loss(self, batch: PromptBatch, completions: Completions, advantages: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        logits = self.policy.completion_logits(batch, completions)
        return grpo_rank_loss(
            logits,
            completions.ids.flatten(0, 1),
            advantages=advantages,
            mask=completions.mask.flatten(0, 1),
            normalizer=1.0,
            inplace=True,
        )[0]


class TRL(Candidate):
    """``GRPOTrainer``'s own forward and loss."""

    def __init__(self, model: Any, point: tuple[int, int, int]) -> None:
        super().__init__(copy.deepcopy(model), True)
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        from orlaif.tiny import tiny_tokenizer

        arguments = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=point[2],
            num_generations=point[2],
            max_completion_length=point[1],
            gradient_checkpointing=False,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            beta=0.0,
            report_to=[],
        )
        reward: Any = lambda completions, **_: [0.0 for _ in completions]  # noqa: E731
        self.trainer = GRPOTrainer(
            model=self.model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["what"]}),
            processing_class=tiny_tokenizer(["what"]),
        )
        self.trainer.current_gradient_accumulation_steps = 1

    def _rows(self, batch: PromptBatch, completions: Completions) -> dict[str, Tensor]:
        g = completions.group_size
        return {
            "prompt_ids": batch.input_ids.repeat(g, 1),
            "prompt_mask": batch.attention_mask.repeat(g, 1),
            "completion_ids": completions.ids[0],
            "completion_mask": completions.mask[0].long(),
        }

    def logps(self, batch: PromptBatch, completions: Completions) -> Tensor:
        """See :class:`Candidate`."""
        rows = self._rows(batch, completions)
        ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
        return self.trainer._get_per_token_logps_and_entropies(
            self.model, ids, torch.ones_like(ids), completions.ids.shape[-1]
        )[0]

    def loss(self, batch: PromptBatch, completions: Completions, advantages: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        count = completions.mask.sum()
        rows = self._rows(batch, completions) | {"advantages": advantages, "num_items_in_batch": count}
        return self.trainer._compute_loss(self.model, rows) * count


def _grouper_sdpa(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    """What prefix_grouper calls for the prompt, and the answers over [prompt, answer]; its masks know padding only."""
    repeats = query.shape[1] // key.shape[1]
    n, m = query.shape[2], key.shape[2]
    causal = None if n == m else torch.ones(n, m, dtype=torch.bool, device=query.device).tril(m - n)
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=causal, is_causal=causal is None, scale=scaling
    )
    return out.transpose(1, 2), None


class Grouper(Candidate):
    """The prefix_grouper package."""

    def __init__(self, model: Any) -> None:
        super().__init__(copy.deepcopy(model), False)
        from prefix_grouper.utils.register_transformers import register_attention
        from transformers import AttentionInterface

        register_attention()
        AttentionInterface.register("grouper_sdpa", _grouper_sdpa)
        self.model.config._attn_implementation = "prefix_grouper_attention"

    def _logits(self, batch: PromptBatch, completions: Completions) -> Tensor:
        from prefix_grouper import PrefixGrouper

        g, a = completions.ids.shape[1:]
        p = batch.input_ids.shape[1]
        grouper = PrefixGrouper.from_ungrouped_masks(
            batch.attention_mask, completions.mask[0].long(), g, device=batch.input_ids.device
        )
        mask = batch.attention_mask, completions.mask[0].long()
        ids = grouper.concat_input(batch.input_ids, mask[0], completions.ids[0], mask[1])
        behind = p + torch.arange(a, device=ids.device).repeat(g)
        positions = torch.cat([torch.arange(p, device=ids.device), behind])[None]
        # Only the places that predict answers go through the LM head, as for the other candidates.
        hidden = self.model.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            prefix_grouper=grouper,
            prefix_grouper_attn_func="grouper_sdpa",
        ).last_hidden_state
        _, _, suffix, _ = grouper.split_output(hidden, include_prefix_last=1)
        return self.model.lm_head(suffix[:, :-1])

    def logps(self, batch: PromptBatch, completions: Completions) -> Tensor:
        """See :class:`Candidate`."""
        logits = self._logits(batch, completions)
        return logits.float().log_softmax(-1).gather(-1, completions.ids[0].unsqueeze(-1)).squeeze(-1)

    def loss(self, batch: PromptBatch, completions: Completions, advantages: Tensor) -> Tensor:
        """See :class:`Candidate`."""
        return grpo_rank_loss(
            self._logits(batch, completions),
            completions.ids[0],
            advantages=advantages,
            mask=completions.mask[0],
            normalizer=1.0,
            inplace=True,
        )[0]


def candidates(model: Any, point: tuple[int, int, int], device: str) -> dict[str, Candidate]:
    """All that take part on this machine."""
    names = ["duplicate", "mask", "split", *(["flex"] if device == "cuda" else [])]
    return {name: Ours(model, name) for name in names} | {"trl": TRL(model, point), "prefix_grouper": Grouper(model)}


# ---------------------------------------------------------------------------------------------------------- measurement


def agreement(contenders: dict[str, Candidate], device: str) -> dict[str, float]:
    """Largest difference of log-probs from the duplicated batch, at a small size."""
    batch, completions, _ = inputs((64, 8, 3), device, 1000)
    with torch.no_grad():
        logps = {name: candidate.logps(batch, completions).float() for name, candidate in contenders.items()}
    return {name: float((value - logps["duplicate"]).abs().max()) for name, value in logps.items()}


def measure_step(
    point: tuple[int, int, int],
    model: Any,
    device: str,
    repeats: int,
) -> dict[str, Any]:
    """Forward, loss and backward of every candidate, taking turns."""
    contenders = candidates(model, point, device)
    batch, completions, advantages = inputs(point, device, model.config.vocab_size)
    tolerance = 0.2 if device == "cuda" else 1e-4
    errors = agreement(contenders, device)
    rows = {name: {"log_prob_difference": errors[name]} for name in contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders if errors[name] <= tolerance}
    peaks: dict[str, int] = {}

    def step(candidate: Candidate) -> Callable[[], None]:
        at_once = MAX_ROWS.get(point[0], point[2]) if candidate.split_group and device == "cpu" else point[2]
        pieces = parts(completions, advantages, at_once)

        def run() -> None:
            for piece, part in pieces:
                candidate.loss(batch, piece, part).backward()

        candidate.model.zero_grad(set_to_none=True)
        gc.collect()
        return run

    for _ in range(repeats):
        for name in times:
            taken, peak = timed_with_peak(step(contenders[name]), device == "cuda")
            times[name].append(taken)
            peaks[name] = max(peak, peaks.get(name, 0))
    for name, taken_all in times.items():
        rows[name] |= {**spread(taken_all), "peak_bytes": peaks[name]}
    work = {shared: operations(point, device, shared) for shared in (False, True)}
    return {
        "model": device,
        "prompt": point[0],
        "answer": point[1],
        "group": point[2],
        "predicted": work[False] / work[True],
        "multiply_adds_shared": work[True],
        "results": rows,
    }


def measure_groups(model: Any, size_name: str, device: str, repeats: int) -> list[dict[str, Any]]:
    """A training step at a fixed prompt for several group sizes, which take turns."""
    names = ["mask", "split", *(["flex"] if device == "cuda" else [])]
    given = {point: inputs(point, device, model.config.vocab_size) for point in GROUP_SIZES}
    times: dict[tuple[tuple[int, int, int], str], list[float]] = {}
    for repeat in range(repeats + 1):
        for point, (batch, completions, advantages) in given.items():
            for name in names:
                candidate = Ours(model, name)
                model.zero_grad(set_to_none=True)

                def step(candidate: Candidate = candidate, given: Any = (batch, completions, advantages)) -> None:
                    candidate.loss(*given).backward()

                taken = seconds(step, device == "cuda")
                if repeat:
                    times.setdefault((point, name), []).append(taken)
    return [
        {
            "model": size_name,
            "prompt": point[0],
            "answer": point[1],
            "group": point[2],
            "multiply_adds_shared": operations(point, size_name, True),
            "results": {name: spread(times[point, name]) for name in names},
        }
        for point in GROUP_SIZES
    ]


def measure_choice(sizes: tuple[int, int, int, int], ragged: bool, model: Any, repeats: int) -> dict[str, Any]:
    """``mask`` against ``split`` on several groups, alike or of different lengths: log-probs and their gradient."""
    p, s, g, t = sizes
    device = model.device
    one, _, _ = inputs((s, t, g), str(device), 1000)
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(int(0.9 * s), s + 1, (p, 1), generator=generator) if ragged else torch.full((p, 1), s)
    answers = torch.randint(1, t + 1, (p, g, 1), generator=generator) if ragged else torch.full((p, g, 1), t)
    batch = PromptBatch(
        prompts=one.prompts * p,
        clips=one.clips * p,
        input_ids=torch.randint(1, 1000, (p, s), generator=generator),
        attention_mask=(torch.arange(s) >= s - prompts).long(),
        mm_inputs={},
    ).to(device)
    completions = Completions(
        ids=torch.randint(1, 1000, (p, g, t), generator=generator).to(device),
        mask=(torch.arange(t) < answers).to(device),
        texts=(("",) * g,) * p,
    )
    times: dict[str, list[float]] = {"mask": [], "split": []}
    policies = {name: TextPolicy(model, "shared", (name,)) for name in times}
    for repeat in range(repeats + 1):
        for name, policy in policies.items():
            model.zero_grad(set_to_none=True)
            call = lambda policy=policy: policy.completion_logps(batch, completions).sum().backward()  # noqa: E731
            taken = seconds(call, device.type == "cuda")
            if repeat:
                times[name].append(taken)
    longest = int(batch.attention_mask.sum(-1).add(completions.mask.sum((1, 2))).max())
    results = {name: spread(taken) for name, taken in times.items()}
    return {"sizes": sizes, "ragged": ragged, "longest_group": longest, "results": results}


def measure_rollout(point: tuple[int, int, int], model: Any, device: str, repeats: int) -> dict[str, Any]:
    """Prefill and whole rollout, against ``generate`` of transformers on the duplicated batch."""
    p, a, g = point
    batch, _, _ = inputs(point, device, model.config.vocab_size)
    sampling = SamplingParams(max_new_tokens=a)
    shared, expanded = (TextPolicy(model, prefix, ("mask", "split")) for prefix in ("shared", "duplicate"))
    generator = torch.Generator(device)

    def duplicated(length: int) -> None:
        model.generate(
            batch.input_ids.repeat(g, 1),
            attention_mask=batch.attention_mask.repeat(g, 1),
            do_sample=True,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=0,
            eos_token_id=None,
            top_k=0,
        )

    calls: dict[str, Callable[[], Any]] = {
        "shared": lambda: generate(shared, batch, g, sampling, generator.manual_seed(0)),
        "shared prefill, expanded decode": lambda: generate(expanded, batch, g, sampling, generator.manual_seed(0)),
        "duplicate (transformers)": lambda: duplicated(a),
        "prefill, shared": torch.no_grad()(
            lambda: prefill(model, batch, shared.prompt_positions(batch), shared.family)
        ),
        "prefill, duplicate": lambda: duplicated(1),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            taken = seconds(call, device == "cuda")
            if repeat:
                times[name].append(taken)
    return {"prompt": p, "answer": a, "group": g, "results": {name: spread(taken) for name, taken in times.items()}}


# -------------------------------------------------------------------------------------------------------------- report


def ratios(entry: dict[str, Any]) -> dict[str, float]:
    """How many times longer each candidate takes than the fastest shared implementation."""
    named = {k: r["median_ms"] for k, r in entry["results"].items() if "median_ms" in r}
    best = min(named[k] for k in ("mask", "split", "flex") if k in named)
    return {k: ms / best for k, ms in named.items()}


def plot(report: dict[str, Any], path: str) -> None:
    """Ratios of time and peak memory at every point, and cost against the group's size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = report["steps"]
    figure, axes = pyplot.subplots(1, 3, figsize=(16, 5.2))
    names = list(dict.fromkeys(name for entry in entries for name in entry["results"]))
    labels = [f"{e['prompt']}, {e['answer']}, {e['group']}" for e in entries]
    for index, name in enumerate(names):
        places = [i + 0.13 * index for i in range(len(entries))]
        rows = [entry["results"].get(name, {}) for entry in entries]
        axes[0].bar(places, [row.get("median_ms", 0) / 1e3 for row in rows], 0.12, label=name)
        axes[1].bar(places, [row.get("peak_bytes", 0) / 1e9 for row in rows], 0.12)
    for axis, what in ((axes[0], "training step, seconds (median)"), (axes[1], "peak above the model, GB")):
        axis.set_yscale("log")
        axis.set_xticks([i + 0.3 for i in range(len(entries))], labels, fontsize=8)
        axis.set_xlabel("prompt, answer, group")
        axis.set_title(what)
    axes[0].legend(fontsize=8)
    for size_name in dict.fromkeys(e["model"] for e in report["groups"]):
        series = [e for e in report["groups"] if e["model"] == size_name]
        groups = [e["group"] for e in series]
        work = [e["multiply_adds_shared"] / series[0]["multiply_adds_shared"] for e in series]
        axes[2].plot(groups, work, "k:", label=f"operations, shared, {size_name}")
        for name in series[0]["results"]:
            times = [e["results"][name]["median_ms"] for e in series]
            axes[2].plot(groups, [ms / times[0] for ms in times], "o-", label=f"{name}, {size_name}")
    axes[2].set_xlabel("answers to a prompt of 2048 tokens")
    axes[2].set_title("training step, times that of G = 2")
    axes[2].set_yscale("log")
    axes[2].legend(fontsize=8)
    figure.suptitle(report["machine"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def show(entry: dict[str, Any]) -> None:
    """A table as it comes."""
    if "sizes" in entry:
        mask, split = (entry["results"][name]["median_ms"] for name in ("mask", "split"))
        ragged = "ragged" if entry["ragged"] else "alike"
        print(f"{entry['model']:<6} {entry['sizes']} {ragged:<7} mask / split {mask / split:.2f}", flush=True)
        return
    times = ratios(entry) if "predicted" in entry else {}
    title = f"\n{entry.get('model', '')} prompt {entry['prompt']} answer {entry['answer']} group {entry['group']}"
    print(
        title
        + (
            f"  predicted {entry['predicted']:.2f}"
            if "predicted" in entry
            else ""
            if "multiply_adds_shared" in entry
            else "  rollout"
        ),
        flush=True,
    )
    for name, row in entry["results"].items():
        if "median_ms" not in row:
            print(f"  {name:<34} differs by {row['log_prob_difference']:.2g}: no speed")
            continue
        peak = f"  peak {row['peak_bytes'] / 1e9:6.2f} GB" if "peak_bytes" in row else ""
        ratio = f"  x {times[name]:5.2f}" if name in times else ""
        print(f"  {name:<34} {row['median_ms']:10.1f} ms [{row['p20_ms']:.1f}, {row['p80_ms']:.1f}]{ratio}{peak}")


def family_steps(name: str, points: list[tuple[int, int, int]], device: str, repeats: int, output: str) -> None:
    """Steps of one family's text model: the row, the forked cache and the duplicated batch, which agree before."""
    model = family_model(name, device, inputs((8, 1, 1), device, 1000)[0])
    rows = ["mask", "split", *(["flex"] if device == "cuda" else [])]
    contenders: dict[str, Candidate] = {who: Ours(model, who) for who in ("duplicate", *rows, "fork")}
    errors = agreement(contenders, device)
    if max(errors.values()) > (0.2 if device == "cuda" else 1e-4):
        raise RuntimeError(f"log-probs differ from the duplicated batch's: {errors}")
    report: dict[str, Any] = {"families": []}
    if os.path.exists(output):
        with open(output, encoding="utf-8") as file:
            report |= json.load(file)
    kept = [entry for entry in report["families"] if entry["family"] != name]
    report |= {**about(device == "cuda"), "versions": installed("torch", "transformers"), "families": kept}
    os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    for point in points:
        given = inputs(point, device, model.config.vocab_size)
        report["families"].append(measure_family(name, point, model, contenders, given, repeats))
        show_family(report["families"][-1])
        with open(output, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


def main() -> None:
    """Measure, print a table as it comes, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/step.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", nargs="+", help="only these steps, each as prompt,answer,group")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="others stay as they are in the JSON")
    parser.add_argument("--family", choices=list(FAMILIES), help="steps of a text model of its proportions instead")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    points, parts = POINTS, arguments.parts
    if arguments.points:
        points = [(int(p), int(a), int(g)) for p, a, g in (point.split(",") for point in arguments.points)]
        parts = ["steps"]
    if arguments.family:
        points = points if arguments.points else FAMILY_POINTS
        family_steps(arguments.family, points, device, arguments.repeats, arguments.output)
        return
    model = language_model(device)
    enable_grouping(model)
    report: dict[str, Any] = {part: [] for part in PARTS}
    if os.path.exists(arguments.output) and set(parts) != set(PARTS):
        with open(arguments.output, encoding="utf-8") as file:
            report |= json.load(file)
    report |= {
        **about(device == "cuda"),
        "models": SIZES,
        "dtype": str(model.dtype),
        "versions": installed("torch", "transformers", "trl", "prefix-grouper"),
        **{part: [] for part in parts},
    }
    os.makedirs(os.path.dirname(arguments.output) or ".", exist_ok=True)

    def done(kind: str, entry: dict[str, Any]) -> None:
        report[kind].append(entry)
        show(entry)
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)

    model.train()
    measure_step((64, 8, 2), model, device, 1)  # what first calls load
    repeats = arguments.repeats
    if "steps" in parts:
        for point in points:
            done("steps", measure_step(point, model, device, repeats if point[0] < 4096 or device == "cuda" else 1))
    model.zero_grad(set_to_none=True)
    if "groups" in parts:
        wide = language_model(device, "wide")
        enable_grouping(wide)
        for name, which in ((device, model), ("wide", wide)):
            for entry in measure_groups(which, name, device, repeats):
                done("groups", entry)
        del wide
    if "rollouts" in parts:
        model.eval()
        for point in GROUP_SIZES:
            done("rollouts", measure_rollout(point, model, device, repeats))
        model.train()
    if "choices" in parts:
        tiny = language_model(device, "tiny")
        enable_grouping(tiny)
        for sizes in CHOICES:
            for ragged in (False, True):
                for who, which in (("tiny", tiny), ("large", model)):
                    done("choices", {"model": who, **measure_choice(sizes, ragged, which, repeats)})
    if report["groups"]:
        plot(report, os.path.splitext(arguments.output)[0] + ".png")


if __name__ == "__main__":
    main()
