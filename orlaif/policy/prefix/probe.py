"""Whether a loaded model gives the same log-probs with a shared prefix: asked of the model, with its own weights.

A group of two random completions behind one synthetic video prompt goes through the model in a row, and each completion
alone through the model as transformers runs it, with the model's own positions and mask. The two must agree, and a
change of one completion must not move the other at all, which also finds a leak that low precision would hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import Family, per_token
from orlaif.policy.prefix.forward import shared_forward
from orlaif.types import Completions, PromptBatch, VideoClip, VideoPrompt

#: Largest difference of a log-prob that is rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.25}


def structural_reason(config: Any) -> str | None:
    """What in a text model's config rules a shared prefix out, or None."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}, whose state runs on from one completion to the next"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores, which sdpa does not"
    window: int | None = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if not sliding or not getattr(config, "use_sliding_window", True):
        window = None
    if window is not None and window < getattr(config, "max_position_embeddings", 0):
        return f"its attention has a window of {window} tokens, which a prompt may exceed"
    return None


def synthetic_prompt(
    processor: Any, device: torch.device, dtype: torch.dtype, family: Family | None = None
) -> PromptBatch:
    """A short question about a video of noise, the same every time."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (4, 3, 56, 56), generator=generator, dtype=torch.uint8)
    clip = VideoClip(frames=frames, pts_s=torch.arange(4.0, dtype=torch.float64) / 2, duration_s=2.0, path="probe")
    prompt = VideoPrompt(id="probe", video="probe", question="what is this", answer="a")
    batch = ProcessorEncoder(processor, family=family)([prompt], [clip])
    pixels = {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.mm_inputs.items()
    }
    return replace(batch, mm_inputs=pixels).to(device)


def _groups(processor: Any, placeholders: list[int], device: torch.device) -> tuple[Completions, Completions]:
    """Two groups of random completions that differ in one of them only."""
    generator = torch.Generator().manual_seed(0)
    special = {*placeholders, *processor.tokenizer.all_special_ids}
    vocabulary = torch.tensor([i for i in range(len(processor.tokenizer)) if i not in special])
    groups = []
    first = torch.randint(len(vocabulary), (1, 1, 3), generator=generator)
    for _ in range(2):
        ids = vocabulary[torch.cat([first, torch.randint(len(vocabulary), (1, 1, 3), generator=generator)], 1)]
        # The completion that changes lies first, so that what follows it would see the change.
        mask = torch.ones(1, 2, 3, dtype=torch.bool)
        groups.append(Completions(ids=ids.flip(1).to(device), mask=mask.to(device), texts=(("a", "b"),)))
    return groups[0], groups[1]


def _logps(logits: Tensor, completions: Completions) -> Tensor:
    """f[G, T] of one group."""
    logps = logits.double().log_softmax(-1).view(*completions.ids.shape, -1)
    return logps.gather(-1, completions.ids.unsqueeze(-1))[0, ..., 0]


def _alone(model: nn.Module, batch: PromptBatch, completions: Completions, family: Family) -> Tensor:
    """f[G, T]: each completion behind the prompt, by transformers' own forward."""
    rows = []
    positions = family.prompt_positions(model, batch)
    t = completions.ids.shape[-1]
    for own in completions.ids[0]:
        ids = torch.cat([batch.input_ids, own[None]], 1)
        ahead = family.completion_positions(positions, t)
        given = family.inputs(model, batch)
        inputs = given | {name: nn.functional.pad(value, (0, t)) for name, value in per_token(batch, given).items()}
        places = torch.cat([positions, ahead], -1)
        mask = torch.ones_like(ids)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, **inputs).logits
        rows.append(logits[0, -t - 1 : -1])
    return _logps(torch.stack(rows), completions)


@torch.no_grad()
def usable_attentions(
    model: Any, processor: Callable[[], Any], wanted: tuple[str, ...], family: Family
) -> tuple[tuple[str, ...], str]:
    """Which implementations of a shared prefix give this model's own log-probs.

    Args:
        model: a loaded video-language model, in eval mode.
        processor: gives its processor.
        wanted: names to try (``orlaif.policy.prefix.attention``).
        family: where the model differs from others.

    Returns:
        Those of ``wanted`` that do, and in words what was found.
    """
    if reason := structural_reason(model.config.get_text_config(decoder=True)):
        return (), reason
    parameter = next(model.parameters())
    tolerance = TOLERANCE[parameter.dtype]
    found, usable, errors = [], [], []
    try:
        batch = synthetic_prompt(processor(), parameter.device, parameter.dtype, family)
        family.settle(model, batch)
        group, changed = _groups(processor(), family.placeholder_ids(model.config), parameter.device)
        expected = _alone(model, batch, group, family)
        positions = family.prompt_positions(model, batch)
    except Exception as error:  # whatever a model or processor we do not know may raise: it is then not shared
        return (), f"the check could not be made: {type(error).__name__}: {error}"
    for name in wanted:
        try:
            shared = _logps(shared_forward(model, batch, group, positions, (name,), family), group)
            moved = _logps(shared_forward(model, batch, changed, positions, (name,), family), changed)
        except Exception as error:  # as above
            found.append(f"{name} fails: {type(error).__name__}: {error}")
            continue
        difference, leak = float((shared - expected).abs().max()), float((shared[1] - moved[1]).abs().max())
        if not difference <= tolerance:
            found.append(f"{name} gives log-probs that differ from the model's own by {difference:.2g}")
        elif leak > 1e-6:
            found.append(f"{name} lets one completion see another (log-probs move by {leak:.2g})")
        else:
            usable.append(name)
            errors.append(difference)
    if usable:
        found.append(f"log-probs equal the model's own to {max(errors):.1g} ({', '.join(usable)})")
    return tuple(usable), "; ".join(found)
