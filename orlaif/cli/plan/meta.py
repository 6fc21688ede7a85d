"""A policy's model on the meta device: nothing is loaded, and passes run without a number being computed.

Attention is replaced by one that makes and keeps what an attention without a matrix of scores does; a choice among
tokens, which has no size without numbers, is taken to be of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from orlaif.cli.plan.live_bytes import note_flops
from orlaif.policy import Policy, lora
from orlaif.policy.asking import base_of
from orlaif.policy.recomputation import recompute

#: An operator, so that selective recomputation sees it as it sees PyTorch's.
_OPERATORS = torch.library.Library("orlaif_plan", "DEF")
_OPERATORS.define("attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")


@torch.library.impl(_OPERATORS, "attention", "Meta")
def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    note_flops(_attention_flops(query, key, value), out)
    return out, query.new_empty(query.shape[:-1], dtype=torch.float32)


class _FlashAttention(torch.autograd.Function):
    """The tensors that an attention without a matrix of scores makes and keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, sums = torch.ops.orlaif_plan.attention(query, key, value)
        ctx.save_for_backward(query, key, value, out, sums)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        note_flops(2.5 * _attention_flops(query, key, value), query)  # five products for two
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    """Of both products, each query looking at half of its row's own keys and at all before those."""
    rows, heads, new, size = query.shape
    seen = key.shape[2] - new / 2
    return 2.0 * rows * heads * new * seen * (size + value.shape[-1])


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    if key.shape[2] != query.shape[2]:  # behind a cache there is a mask, with which transformers repeats key heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return _FlashAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("orlaif_plan", _attention)
AttentionMaskInterface.register("orlaif_plan", lambda *args, **kwargs: None)


@contextmanager
def on_meta() -> Iterator[None]:
    """A context in which passes on the meta device run that ask what only numbers tell."""
    autocast = torch.autocast

    def allowed(device_type: str, *args: Any, **kwargs: Any) -> Any:  # which knows no autocast there
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    nonzero = patch("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", True)
    with nonzero, patch("torch.autocast", allowed):
        yield


def meta_model(policy: Policy) -> Any:
    """The policy's model on the meta device, as :meth:`Policy.load` would make it, in training mode."""
    with torch.device("meta"):
        model: Any = policy.family.build(
            policy.config, dtype=getattr(torch, policy.dtype), attn_implementation="orlaif_plan"
        )
        tower: list[nn.Module] = []
        if policy.freeze_vision:
            tower = policy.family.tower(model)
            for parameter in policy.family.tower_parameters(model):
                parameter.requires_grad_(False)
        if policy.lora is not None:
            with on_meta():
                model = lora.attach(model, policy.lora, tower)
    attention = frozenset({torch.ops.orlaif_plan.attention})
    offloaded = policy.activation_offloading
    recompute(model, policy.gradient_checkpointing, offloaded, attention, preserve_rng_state=False)
    return model.train()


def decoder_of(model: Any) -> nn.Module:
    """The decoder, without the LM head that some models count to it."""
    decoder = base_of(model).get_decoder()
    while getattr(decoder, "lm_head", None) is not None:
        decoder = decoder.get_decoder()
    return decoder  # type: ignore[no-any-return]


def read_rows(decoder: Any, inputs: Tensor, places: Tensor, **more: Any) -> Any:
    """What a decoder gives for embedded tokens on the meta device.

    Those that embed each token once more, for their layers, want its id beside its embedding; here it has one.

    Args:
        decoder: of transformers.
        inputs: embeddings [R, L, H].
        places: position ids.
        more: further arguments.
    """
    ids = torch.empty(inputs.shape[:2], dtype=torch.long, device="meta")
    if getattr(decoder, "hidden_size_per_layer_input", 0):
        more["per_layer_inputs"] = decoder.get_per_layer_inputs(ids, None)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
    found = patch.object(decoder, "reverse_embedding", lambda *_: ids)
    with found if hasattr(decoder, "reverse_embedding") else nullcontext():
        return decoder(inputs_embeds=inputs, position_ids=places, attention_mask=mask, **more)
