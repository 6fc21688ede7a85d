"""What rules rows out before any number is compared."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orlaif.policy.prefix.prepare import structural_reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"layer_types": ["full_attention"] * 2}, None),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention"),
        ({"layer_types": ["chunked_attention"]}, "layers of chunked_attention"),
        ({"attn_logit_softcapping": 50.0}, "caps its attention scores"),
        ({"sliding_window": 4096, "max_position_embeddings": 32768}, "has a window"),
        ({"sliding_window": 32768, "max_position_embeddings": 32768}, None),
        ({"sliding_window": 4096, "max_position_embeddings": 32768, "use_sliding_window": False}, None),
        (
            {"sliding_window": 4096, "max_position_embeddings": 32768, "layer_types": ["full_attention"]},
            None,
        ),
        (
            {"sliding_window": 64, "max_position_embeddings": 128, "layer_types": ["sliding_attention"]},
            "has a window",
        ),
    ],
)
def test_what_a_config_rules_out(config: dict[str, object], reason: str | None) -> None:
    found = structural_reason(SimpleNamespace(**config))
    assert found is None if reason is None else reason in (found or "")


def test_what_can_be_served_is_not_ruled_out() -> None:
    """Layers whose state was found, masks that can be asked, indexers that choose all there is."""
    hybrid = SimpleNamespace(layer_types=["linear_attention", "moe", "full_attention", "mlp"])
    assert structural_reason(hybrid, with_state={0}) is None
    assert structural_reason(hybrid, with_state={2}) is not None
    window = SimpleNamespace(sliding_window=64, max_position_embeddings=128, layer_types=["sliding_attention"])
    assert structural_reason(window, own_masks=True) is None
    sparse = SimpleNamespace(index_topk=64, max_position_embeddings=128, layer_types=["indexed_attention"])
    assert (
        structural_reason(sparse)
        == "its attention reads the 64 keys that an indexer chooses, from all that lie in a row"
    )
    sparse.index_topk = 128
    assert structural_reason(sparse) is None
    unsaid = SimpleNamespace(max_position_embeddings=128, layer_types=["indexed_attention"])
    assert "reads the keys that an indexer chooses" in (structural_reason(unsaid) or "")
