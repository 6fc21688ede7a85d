"""The settings of a policy that contradict each other, found before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from orlaif.policy.prefix.attention import PrefixAttention
from orlaif.policy.prefix.choice import Prefix
from orlaif.policy.prefix.fork import CHECKPOINTING
from orlaif.policy.recomputation import SEEN_BY_HOOKS

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy

DTYPES = ("bfloat16", "float16", "float32", "float64")


def check_settings(policy: Policy) -> None:
    """Raise ValueError for a setting of ``policy`` out of its range, or two that contradict each other."""
    prefix, attn_implementation, prefix_attention = policy.prefix, policy.attn_implementation, policy.prefix_attention
    if policy.dtype not in DTYPES:
        raise ValueError(f"policy.dtype is {policy.dtype!r}; it must be one of {', '.join(DTYPES)}")
    if prefix not in get_args(Prefix):
        raise ValueError(f"policy.prefix is {prefix!r}; it must be 'auto', 'shared', 'fork' or 'duplicate'")
    if prefix_attention not in get_args(PrefixAttention):
        raise ValueError(
            f"policy.prefix_attention is {prefix_attention!r}; it must be 'auto', 'mask', 'split' or 'flex'"
        )
    if prefix == "shared" and attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"policy.attn_implementation is {attn_implementation!r}; a shared prefix needs 'sdpa' or 'eager'"
        )
    if prefix_attention in ("split", "flex") and (attn_implementation != "sdpa" or prefix in ("fork", "duplicate")):
        raise ValueError(
            f"policy.prefix_attention is {prefix_attention!r}; it needs prefix 'auto' or 'shared' and "
            f"attn_implementation 'sdpa', and they are {prefix!r} and {attn_implementation!r}"
        )
    if prefix == "fork" and policy.gradient_checkpointing:
        raise ValueError(
            f"policy.prefix is 'fork' and policy.gradient_checkpointing is {policy.gradient_checkpointing!r}: "
            f"{CHECKPOINTING}; use prefix 'auto'"
        )
    if policy.activation_offloading and policy.gradient_checkpointing == "selective" and not SEEN_BY_HOOKS:
        raise ValueError(
            "policy.activation_offloading is true and policy.gradient_checkpointing is 'selective', of which PyTorch "
            f"{torch.__version__} keeps all on the GPU but layers' inputs; use 'layers'"
        )
    if policy.quantization is not None and policy.lora is None:
        raise ValueError("policy.quantization is given without policy.lora; quantised weights cannot be trained")
    check_sequence(policy)


def check_sequence(policy: Policy) -> None:
    """Raise ValueError where ``sequence_parallel`` is out of its range, or beside settings that do not divide a row."""
    number = policy.sequence_parallel
    if number < 1:
        raise ValueError(f"policy.sequence_parallel is {number}; it must be 1 or more processes")
    if number == 1:
        return
    if policy.attn_implementation != "sdpa" or policy.prefix not in ("auto", "shared"):
        raise ValueError(
            f"policy.sequence_parallel is {number}; it needs attn_implementation 'sdpa' and prefix 'auto' or 'shared', "
            f"and they are {policy.attn_implementation!r} and {policy.prefix!r}"
        )
    if policy.prefix_attention not in ("auto", "split"):
        raise ValueError(
            f"policy.prefix_attention is {policy.prefix_attention!r}; with policy.sequence_parallel: {number} it must "
            "be 'auto' or 'split'"
        )
