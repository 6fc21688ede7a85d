"""Questions to a model and its processor, without a word about which family they are.

Shapes: P prompts of S tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.video_utils import VideoMetadata

from orlaif.types import Picture, PromptBatch, VideoClip


def base_of(model: Any) -> Any:
    """The transformers model, taken out of PEFT's where there is one around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def speaking(config: Any) -> Any:
    """The part of a checkpoint's config that transformers has a class for which sees and speaks; None if there is none.

    The config itself, or the first one below it: an Omni checkpoint holds a thinker beside what makes a voice of it.

    Args:
        config: of transformers.
    """
    below = (value for value in vars(config).values() if hasattr(value, "model_type"))
    known = AutoModelForImageTextToText._model_mapping
    return next((part for part in (config, *below) if type(part) in known), None)


def per_token(batch: PromptBatch, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Those of ``inputs`` that have a value for each prompt token of ``batch``, [P, S]."""
    shape = batch.input_ids.shape
    return {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.shape == shape and value.dtype in (torch.int64, torch.int32)
    }


def process(
    processor: Any,
    prompts: list[str],
    videos: list[list[Tensor]],
    metadata: list[VideoMetadata],
    images: list[list[Tensor]] | None = None,
    **more: Any,
) -> dict[str, Tensor]:
    """What a processor returns for the model, as tensors.

    Args:
        processor: of transformers.
        prompts: P, as the chat template renders them.
        videos: frames u8[F, 3, H, W] of each prompt's videos.
        metadata: of the videos, one behind the other.
        images: u8[3, H, W], of each prompt.
        more: what one processor is told and others are not.
    """
    begin = processor.tokenizer.bos_token
    # A template that has written the beginning has written all, as in ``apply_chat_template(tokenize=True)``.
    begins = begin is not None and prompts[0].startswith(begin)
    if (getattr(processor, "videos_kwargs", None) or {}).get("do_resize") is False:  # MiniMax's, for frames that fit
        more = {"do_resize": True, **more}
    if getattr(processor, "return_mm_token_type_ids", None) is False:  # Cosmos' model wants them all the same
        more = {"return_mm_token_type_ids": True, **more}
    shown: dict[str, Any] = {}
    if any(videos):
        shown = {
            "videos": videos,  # transformers 5.17 wants it said for SmolVLM whose video it is
            "video_metadata": metadata,
            "do_sample_frames": False,
            "return_metadata": True,  # some read it back to write the times of frames
        }
    if images and any(images):
        shown["images"] = images
    returned = processor(
        text=prompts,
        **shown,
        return_tensors="pt",
        **({"add_special_tokens": False} if begins else {}),
        **more,
    )
    inputs = {}
    for name, value in dict(returned).items():
        if isinstance(value, Tensor):
            inputs[name] = value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(x, (int, float)) for x in value):
            inputs[name] = torch.tensor(value)
    return inputs


def sorted_out(
    items: Sequence[Picture | VideoClip], metadata: Sequence[VideoMetadata]
) -> tuple[list[list[Tensor]], list[VideoMetadata], list[list[Tensor]]]:
    """What one prompt shows as :func:`process` takes it; copies, since some draw into them."""
    clips = [item.frames.clone() for item in items if isinstance(item, VideoClip)]
    return [clips], list(metadata), [[item.pixels.clone() for item in items if isinstance(item, Picture)]]


class _CaughtError(Exception):
    """A forward pass has reached the decoder, and need not go on."""


def decoder_positions(model: Any, inputs: dict[str, Any]) -> Tensor | None:
    """The position ids that ``model`` hands to its decoder for ``inputs``, [..., P, S]; None where it hands none.

    The pass ends there, without gradient; the vision tower has run.
    """
    taken: list[Tensor | None] = []

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        taken.append(kwargs.get("position_ids"))
        raise _CaughtError

    handle = base_of(model).get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except _CaughtError:
        pass
    finally:
        handle.remove()
    positions = taken[0] if taken else None
    if positions is not None and positions.ndim == 3 and positions.shape[0] == 4:
        return positions[1:]  # the first of four is the place in the text, for masks
    return positions


def counted_positions(model: Any, way: str, given: dict[str, Any]) -> Tensor | None:
    """The position ids by a method of ``model`` that counts them, [..., P, S]; None where it cannot be asked.

    Args:
        model: of transformers, or PEFT's around one.
        way: name of the method; what it takes and ``given`` lacks, the model has not been given.
        given: the model's inputs, by name.
    """
    base = base_of(model)
    ask = getattr(getattr(base, "model", base), way, None)
    if ask is None:
        return None
    names = inspect.signature(ask).parameters
    needed = [name for name, p in names.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = dict.fromkeys(name for name in needed if name not in given)
    try:
        counted = ask(**missing, **{name: value for name, value in given.items() if name in names})
    except Exception:  # whatever it raises without what it was not given
        return None
    return counted[0] if isinstance(counted, tuple) else counted


def leaves(output: Tensor) -> set[int]:
    """Ids of the tensors that a gradient of ``output`` would go to; empty where it has no graph."""
    seen, found = set(), set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        waiting += [after for after, _ in node.next_functions]
    return found


def same_places(handed: Tensor, counted: Tensor, batch: PromptBatch) -> bool:
    """Whether two numberings differ by nothing that attention sees: padding, and for plain ones a constant."""
    if handed.shape != counted.shape:
        if handed.ndim != 2 or counted.ndim != 2:
            return False
        handed = handed.expand(counted.shape)
    real = batch.attention_mask.bool().expand(counted.shape)
    difference = (handed - counted).masked_fill(~real, 0)
    if handed.ndim == 2:
        first = real.int().argmax(-1, keepdim=True)
        difference = (difference - difference.gather(-1, first)).masked_fill(~real, 0)
    return not bool(difference.any())
