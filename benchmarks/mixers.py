"""What ``benchmarks.step --family`` measures: a training step of decoders whose layers are of several kinds.

Text models of a family's proportions and tiny width, random weights. Beside the time of each layout stands the ratio
that counting multiply-adds gives: weights of every token, scores and values of every pair that attends (in a layer with
a window those inside it), what Gated DeltaNet does in chunks, and the LM head.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from benchmarks.harness import spread, timed_with_peak
from orlaif.policy.prefix.attention import enable_grouping
from orlaif.policy.prefix.decode import prefill
from orlaif.policy.prefix.prepare import prepare_rows
from orlaif.types import Completions, PromptBatch

#: (P, A, G); where a family has windows, all prompts exceed them.
POINTS = [(512, 16, 5), (1024, 32, 8), (2048, 32, 8)]
#: Tokens that Gated DeltaNet works on at once.
CHUNK = 64
COMMON: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 8000, "tie_word_embeddings": False}
_THREE_OF_FOUR = ["linear_attention"] * 3 + ["full_attention"]
_FIVE_OF_SIX = ["sliding_attention"] * 5 + ["full_attention"]


def qwen3_5() -> Any:
    """To a hidden unit as many weights, heads and states as Qwen3.5 4B has: three layers of four are recurrent."""
    config = Qwen3_5TextConfig(
        **COMMON,
        intermediate_size=1856,
        num_attention_heads=12,
        num_key_value_heads=3,
        head_dim=64,
        linear_num_key_heads=6,
        linear_num_value_heads=12,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        layer_types=_THREE_OF_FOUR * 2,
        max_position_embeddings=16384,
    )
    return Qwen3_5ForCausalLM(config)


def gemma4() -> Any:
    """Gemma 4's layers: five of six with a window, here of 256 tokens, and larger heads in the sixth."""
    sizes: dict[str, Any] = {**COMMON, "num_hidden_layers": 6, "global_head_dim": 128}
    config = Gemma4TextConfig(
        **sizes,
        intermediate_size=2048,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        layer_types=_FIVE_OF_SIX,
        sliding_window=256,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        max_position_embeddings=16384,
    )
    return Gemma4ForCausalLM(config)


FAMILIES: dict[str, Callable[[], Any]] = {"qwen3_5": qwen3_5, "gemma4": gemma4}


def family_model(name: str, device: str, batch: PromptBatch) -> Any:
    """The text model of a family, told how groups go in rows.

    Args:
        name: of the family.
        device: its place; bfloat16 on CUDA, float32 elsewhere.
        batch: a prompt for the pass in which it is asked.

    Raises:
        RuntimeError: its groups cannot go in rows.
    """
    from orlaif.policy.families import Family

    torch.manual_seed(0)
    model = FAMILIES[name]().to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    enable_grouping(model)
    family = Family()
    positions = family.prompt_positions(model, batch)
    reason = prepare_rows(model, lambda cache: prefill(model, batch, positions, family, cache))
    if reason is not None:
        raise RuntimeError(f"{name} does not run in rows: {reason}")
    return model.train()


def pairs(point: tuple[int, int, int], window: int | None, shared: bool) -> float:
    """Pairs of tokens that attend in one layer."""
    p, a, g = point

    def seen(start: int, end: int) -> float:
        """By the tokens ``start`` to ``end`` of one sequence."""
        if window is None:
            return (end * end - start * start) / 2
        return sum(min(i + 1, window) for i in range(start, end))

    return seen(0, p) + g * seen(p, p + a) if shared else g * seen(0, p + a)


def operations(model: Any, point: tuple[int, int, int], shared: bool) -> float:
    """Multiply-adds of a forward pass."""
    p, a, g = point
    config = model.config
    tokens = p + g * a if shared else g * (p + a)
    total = float(g * a * model.lm_head.weight.numel())
    for kind, layer in zip(config.layer_types, model.get_decoder().layers, strict=True):
        total += tokens * sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
        if kind == "linear_attention":
            key, value = config.linear_key_head_dim, config.linear_value_head_dim
            chunk = CHUNK * (2 * key + value + (key + value) / 2)
            total += tokens * config.linear_num_value_heads * (chunk + 3 * key * value)
        else:
            window = config.sliding_window if kind == "sliding_attention" else None
            width = layer.self_attn.o_proj.weight.shape[1]
            total += 2 * width * pairs(point, window, shared)
    return total


def measure_family(
    name: str,
    point: tuple[int, int, int],
    model: Any,
    contenders: dict[str, Any],
    given: tuple[PromptBatch, Completions, Any],
    repeats: int,
) -> dict[str, Any]:
    """A training step of every layout, taking turns.

    Args:
        name: of the family.
        point: (P, A, G).
        model: that all of them run.
        contenders: candidates of ``benchmarks.step`` by name, ``duplicate`` among them.
        given: a prompt, its answers and their advantages.
        repeats: of each, after one that is not counted.

    Returns:
        Milliseconds of each, how many times as long the duplicated batch takes as the row, and what operations predict.
    """
    cuda = model.device.type == "cuda"
    times: dict[str, list[float]] = {who: [] for who in contenders}
    peaks = dict.fromkeys(contenders, 0)
    for repeat in range(repeats + 1):
        for who, candidate in contenders.items():
            model.zero_grad(set_to_none=True)
            gc.collect()
            taken, peak = timed_with_peak(lambda who=candidate: who.loss(*given).backward(), cuda)  # type: ignore[misc]
            if repeat:
                times[who].append(taken)
                peaks[who] = max(peak, peaks[who])
    results = {who: {**spread(taken), "peak_bytes": peaks[who]} for who, taken in times.items()}
    best = min(row["median_ms"] for who, row in results.items() if who not in ("duplicate", "fork"))
    predicted = operations(model, point, False) / operations(model, point, True)
    measured = results["duplicate"]["median_ms"] / best
    return {
        "family": name,
        "prompt": point[0],
        "answer": point[1],
        "group": point[2],
        "predicted": predicted,
        "measured": measured,
        "of_prediction": measured / predicted,
        "results": results,
    }


def show_family(entry: dict[str, Any]) -> None:
    """A table as it comes."""
    print(
        f"\n{entry['family']} prompt {entry['prompt']} answer {entry['answer']} group {entry['group']}  predicted "
        f"{entry['predicted']:.2f}, measured {entry['measured']:.2f}: {100 * entry['of_prediction']:.0f} %",
        flush=True,
    )
    for who, row in entry["results"].items():
        spans = f"[{row['p20_ms']:.1f}, {row['p80_ms']:.1f}]"
        print(f"  {who:<12} {row['median_ms']:10.1f} ms {spans}  peak {row['peak_bytes'] / 1e9:6.2f} GB", flush=True)
