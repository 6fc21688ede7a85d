"""A policy's model on the meta device: nothing is loaded, and passes run without a number being computed.

Attention is replaced by one that makes and keeps what real ones do (``orlaif.cli.plan.attention``); a choice among
tokens, which has no size without numbers, is taken to be of all of them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from orlaif.cli.plan.attention import NAME, OPERATOR, Reading, has_windows, reading
from orlaif.cli.plan.numbers import on_meta
from orlaif.cli.plan.shown import Shown, show
from orlaif.policy import Policy, lora
from orlaif.policy.asking import base_of
from orlaif.policy.loading import freeze_tower
from orlaif.policy.reached import freeze_others
from orlaif.policy.recomputation import recompute


def meta_model(policy: Policy) -> tuple[Any, Shown]:
    """The policy's model on the meta device, as :meth:`Policy.load` would make it, and what it did with a clip."""
    with torch.device("meta"):
        model: Any = policy.family.build(policy.config, dtype=getattr(torch, policy.dtype), attn_implementation=NAME)
    shown = show(policy, model, eyes(policy, model))
    tower = freeze_tower(policy, model)
    if shown.reached is not None:
        tower += freeze_others(model, shown.reached | {id(p) for p in behind_the_tower(policy, model)})
    elif not getattr(policy.family, "sound", False):  # then no video reaches them
        tower += ears(model)
        for module in ears(model):
            module.requires_grad_(False)
    if policy.lora is not None:
        with torch.device("meta"), on_meta():
            model = lora.attach(model, policy.lora, tower)
    offloaded, attention = policy.activation_offloading, frozenset({OPERATOR})
    recompute(model, policy.gradient_checkpointing, offloaded, attention, preserve_rng_state=False)
    return model.train(), shown


def behind_the_tower(policy: Policy, model: Any) -> list[nn.Parameter]:
    """The parameters of decoder and LM head, which every prompt reaches."""
    outside = {id(p) for p in policy.family.tower_parameters(model)}
    return [p for p in model.parameters() if id(p) not in outside]


def ears(model: Any) -> list[nn.Module]:
    """The modules that hear: those that are made from the config of sound."""
    configs = [getattr(base_of(model).config, name, None) for name in ("audio_config", "sound_config")]
    return [m for m in model.modules() if any(c is not None and getattr(m, "config", None) is c for c in configs)]


def eyes(policy: Policy, model: Any) -> list[nn.Module]:
    """What makes features of a video's frames: the tower without ears."""
    heard = {id(module) for module in ears(model)}
    return [part for part in policy.family.tower(model) if id(part) not in heard]


def decoder_of(model: Any) -> nn.Module:
    """The decoder, without the LM head that some models count to it."""
    decoder = base_of(model).get_decoder()
    while getattr(decoder, "lm_head", None) is not None:
        decoder = decoder.get_decoder()
    return decoder  # type: ignore[no-any-return]


def read_rows(decoder: Any, inputs: Tensor, places: Tensor, rows: Reading, masked: bool = False, **more: Any) -> Any:
    """What a decoder gives for embedded tokens on the meta device.

    Those that embed each token once more, for their layers, want its id beside its embedding; here it has one.

    Args:
        decoder: of transformers.
        inputs: embeddings [R, L, H].
        places: position ids.
        rows: what they hold.
        masked: attention reads a mask of all that a token sees, bool[R, 1, L, L].
        more: further arguments.
    """
    ids = torch.empty(inputs.shape[:2], dtype=torch.long, device="meta")
    if getattr(decoder, "hidden_size_per_layer_input", 0):
        more["per_layer_inputs"] = decoder.get_per_layer_inputs(ids, None)
    number, length = inputs.shape[:2]
    if rows.blocks or has_windows(decoder.config):  # these build their masks; some layers ask whether there is padding
        mask = torch.ones(number, length + _seen(more.get("past_key_values")), dtype=torch.bool)
    else:  # one of four dimensions goes through transformers as it is
        mask = torch.ones((number, 1, length, length) if masked else (1, 1, 1, 1), dtype=torch.bool, device="meta")
    found = patch.object(decoder, "reverse_embedding", lambda *_: ids)
    with reading(rows), found if hasattr(decoder, "reverse_embedding") else nullcontext():
        return decoder(inputs_embeds=inputs, position_ids=places, attention_mask=mask, **more)


def _seen(cache: Any) -> int:
    """Tokens that a cache holds."""
    return 0 if cache is None else int(cache.get_seq_length())
