"""What a model is asked, and told, before its groups go in rows: which layers have a state, which masks are its own."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from transformers import DynamicCache

from orlaif.policy.asking import base_of
from orlaif.policy.prefix.masks import is_causal, watched_rules
from orlaif.policy.prefix.mixers import find_mixers, run_in_rows

#: Kinds of layers that a mask serves, or that look at no other token.
_SERVED = {"full_attention", "sliding_attention", "moe", "mlp"}


@torch.no_grad()
def prepare_rows(model: Any, fill: Callable[[DynamicCache], object]) -> str | None:
    """Let a loaded model run groups in rows; without rows nothing changes.

    Args:
        model: of transformers, with the attention function that it will run on.
        fill: a pass of the model over prompts that fills the cache it is given.

    Returns:
        What rules rows out, or None.
    """
    base = base_of(model)
    try:
        with watched_rules() as rules:
            mixers = find_mixers(model, fill)
    except Exception as error:  # whatever a model that we do not know may raise
        return f"a pass that fills its cache fails: {type(error).__name__}: {error}"
    own_masks = not all(is_causal(rule) for rule in rules)
    with_state = {mixer.layer for mixer in mixers.values()}
    if reason := structural_reason(base.config.get_text_config(decoder=True), with_state, own_masks):
        return reason
    run_in_rows(mixers)
    base.get_decoder().orlaif_own_masks = own_masks
    return None


def has_own_masks(model: Any) -> bool:
    """Whether a prepared model builds masks that are more than causal (``orlaif.policy.prefix.masks``)."""
    return getattr(base_of(model).get_decoder(), "orlaif_own_masks", False)


def structural_reason(config: Any, with_state: Collection[int] = (), own_masks: bool = False) -> str | None:
    """What in a text model's config rules a shared prefix out, or None.

    Args:
        config: of the text model.
        with_state: the layers whose state can be forked (``orlaif.policy.prefix.mixers``).
        own_masks: the model's masks can be asked about rows (``orlaif.policy.prefix.masks``).
    """
    layers = list(getattr(config, "layer_types", None) or [])
    kinds = {kind for i, kind in enumerate(layers) if i not in with_state} - _SERVED
    longest = getattr(config, "max_position_embeddings", 0)
    chosen: int | None = getattr(config, "index_topk", None) or getattr(config, "indexer_budget", None)
    if (chosen is not None or "indexed_attention" in kinds) and (chosen or 0) < longest:
        number = "" if chosen is None else f"{chosen} "
        return f"its attention reads the {number}keys that an indexer chooses, from all that lie in a row"
    if kinds - {"indexed_attention"}:
        return f"it has layers of {', '.join(sorted(kinds))}, whose state runs on from one completion to the next"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores, which sdpa does not"
    window: int | None = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (layers or ["sliding_attention"])
    if not sliding or not getattr(config, "use_sliding_window", True):
        window = None
    if window is not None and window < longest and not own_masks:
        return "its attention has a window, which a prompt may exceed, and 'sdpa' alone knows masks of its own in rows"
    return None
