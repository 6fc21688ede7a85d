"""Windows, and frames that see one another, inside rows: by hand, and on whole models beside completions alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import blockwise_overlay, causal_mask_function, or_masks, sliding_window_overlay

from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.prefix import masks
from orlaif.policy.prefix.current import Laid, laid
from orlaif.policy.prefix.layout import GroupRows, group_rows
from orlaif.policy.prefix.prepare import has_own_masks
from orlaif.types import Completions
from tests.conftest import random_completions
from tests.families import FAMILIES, MASKED
from tests.policy.prefix.truth import differences, encoded, given, loaded, pair, truth, written

THREE = range(3)


@pytest.fixture(scope="module", params=list(MASKED))
def masked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written("gemma4", tmp_path_factory)


def rows_by_hand() -> GroupRows:
    """[p p p a a b | padding] and, in the second row, [p p a | ...]."""
    completions = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]]).bool()
    return group_rows(torch.tensor([[1, 1, 1], [0, 1, 1]]), completions)


def made(rows: GroupRows, rule: Callable[..., Tensor], **more: bool) -> Tensor:
    """What a model gets for the mask that it builds from ``rule``."""
    _, length = rows.shape
    with laid(Laid(rows=rows, attention="mask")):
        return masks.row_mask(mask_function=rule, q_length=length, kv_length=length, **more)[:, 0].int()


def window(size: int) -> Callable[..., Tensor]:
    inside = sliding_window_overlay(size)
    return lambda b, h, q, k: inside(b, h, q, k) & causal_mask_function(b, h, q, k)


def test_a_window_by_hand() -> None:
    """Of three tokens; the second completion stands behind the prompt, as the first does."""
    mask = made(rows_by_hand(), window(3))
    assert mask.tolist() == [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 1, 1, 0, 0, 1],
        ],
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],  # padding sees padding
            [0, 0, 0, 1, 1, 0],
            [0, 0, 0, 1, 1, 1],
        ],
    ]


@pytest.mark.parametrize("use_vmap", [False, True])
def test_frames_that_see_one_another_by_hand(use_vmap: bool) -> None:
    """The first two tokens of each prompt are one frame's."""
    frames = torch.tensor([[0, 0, -1, -1, -1, -1], [0, 0, -1, -1, -1, -1]])
    mask = made(rows_by_hand(), or_masks(causal_mask_function, blockwise_overlay(frames)), use_vmap=use_vmap)
    assert mask[0].tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert mask[1, :3].tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_a_mask_made_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(rows_by_hand(), window(2))
    monkeypatch.setattr(masks, "CHUNK", 4)
    assert torch.equal(made(rows_by_hand(), window(2)), whole)


def test_a_rule_that_is_causal_needs_no_mask_of_its_own() -> None:
    rows = rows_by_hand()
    assert torch.equal(made(rows, causal_mask_function), rows.mask[:, 0].int())
    with laid(Laid(rows=rows, attention="split")):
        assert masks.row_mask(mask_function=causal_mask_function, q_length=6, kv_length=6).shape == (1, 1, 1, 1)
        with pytest.raises(ValueError, match="it masks 5 queries over 6 keys in a row of 6"):
            masks.row_mask(mask_function=causal_mask_function, q_length=5, kv_length=6)


@pytest.mark.parametrize("attention", ["mask", "split"])
def test_a_row_is_its_completions_alone(masked: str, shapes: ShapesDataset, attention: str) -> None:
    """Prompts beyond the window, and completions so long that their last tokens see nothing of the prompt."""
    shared, plain = pair(masked, prefix_attention=attention)
    assert has_own_masks(shared.network)
    assert int(encoded(shared, shapes, THREE).attention_mask.sum(-1).min()) > 16
    completions = random_completions(plain, 3, 2, 24)
    logps, grads = differences(given(shared, shapes, THREE, completions), truth(plain, shapes, THREE, completions))
    assert logps <= 1e-5
    assert grads <= 1e-5


def test_the_window_shows(gemma4: str, shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances by place in the row would be others."""
    shared, plain = pair(gemma4, prefix_attention="mask")
    completions = random_completions(plain, 3, 2, 24)
    theirs = truth(plain, shapes, THREE, completions)[0]
    monkeypatch.setattr(masks, "shifts", lambda rows: torch.zeros(rows.shape, dtype=torch.long))
    ours = shared.completion_logps(encoded(shared, shapes, THREE), completions).detach()
    off = (ours - theirs).abs().amax(-1)
    assert float(off[:, 0].max()) <= 1e-5
    assert float(off[:, 1].min()) > 1e-3


def test_the_check_at_load_narrows_a_window_that_its_prompts_do_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real windows are longer than synthetic prompts; wrong distances must be found all the same."""
    MASKED["exaone4_5"](str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["sliding_window"] = 1024
    (tmp_path / "config.json").write_text(json.dumps(config))
    policy = Policy(str(tmp_path), dtype="float32", prefix="shared").load()
    assert policy.network.config.get_text_config().sliding_window == 1024
    monkeypatch.setattr(masks, "shifts", lambda rows: torch.zeros(rows.shape, dtype=torch.long))
    with pytest.raises(ValueError, match=r"not for model type 'exaone4_5': mask gives log-probs that differ"):
        Policy(str(tmp_path), dtype="float32", prefix="shared").load()


def test_with_recomputation_and_an_adapter(tmp_path: object, shapes: ShapesDataset) -> None:
    MASKED["gemma4_unified"](str(tmp_path))
    adapter = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "lora_alpha": 1}
    shared = loaded(str(tmp_path), prefix="shared", lora=adapter, gradient_checkpointing=True)
    plain = loaded(str(tmp_path), prefix="duplicate", lora=adapter)
    completions = random_completions(plain, 3, 2, 8)
    logps, grads = differences(given(shared, shapes, THREE, completions), truth(plain, shapes, THREE, completions))
    assert logps <= 1e-5
    assert grads <= 1e-5


def test_flex_attends_by_the_models_masks(gemma4: str, shapes: ShapesDataset) -> None:
    """Forward only: FlexAttention has no backward pass on a CPU."""
    shared, plain = pair(gemma4, prefix_attention="flex")
    completions = random_completions(plain, 3, 2, 24)
    with torch.no_grad():
        ours, theirs = (
            policy.completion_logps(encoded(policy, shapes, THREE), completions) for policy in (shared, plain)
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_no_completion_sees_another(masked: str, shapes: ShapesDataset) -> None:
    policy = loaded(masked, prefix="shared")
    batch, first = encoded(policy, shapes, [0, 1]), random_completions(policy, 2, 3, 4)
    ids = first.ids.clone()
    ids[:, 0] = ids[:, 0].roll(1, -1)
    other = Completions(ids=ids, mask=first.mask, texts=first.texts)
    with torch.no_grad():
        a, b = (policy.completion_logps(batch, completions) for completions in (first, other))
    assert not torch.equal(a[:, 0], b[:, 0])
    assert torch.equal(a[:, 1:], b[:, 1:])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_models_of_full_attention_get_the_mask_they_got(family: str, tmp_path: object) -> None:
    FAMILIES[family](str(tmp_path))
    policy = Policy(str(tmp_path), dtype="float32").load()
    assert policy.layout == "shared"
    assert not has_own_masks(policy.network)


def test_eager_attention_has_no_windows_in_rows(gemma4: str) -> None:
    with pytest.raises(ValueError, match=r"not for model type 'gemma4': its attention has a window"):
        Policy(gemma4, dtype="float32", prefix="shared", attn_implementation="eager").load()
