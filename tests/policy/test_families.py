"""What is asked of a model: its positions, head, tower and placeholders; and what is known better."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from orlaif.policy.asking import decoder_positions
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import Family, TextBehindTheVideo, family_of
from orlaif.policy.positions import behind_the_largest
from orlaif.types import VideoPrompt
from tests.conftest import make_policy, random_completions
from tests.families import FAMILIES
from tests.policy.test_encoding import a_clip


def test_text_starts_behind_the_largest_coordinate() -> None:
    """Two words, a video of 3 grids of 1 x 2 tokens two apart in time, two words; padded on the left by one.

    The installed transformers goes on at 2 + max(1, 2) = 4; the original at 2 + 4 + 1 = 7.
    """
    time, height, width = [0, 0, 1, 2, 2, 4, 4, 6, 6, 4, 5], [0, 0, 1, 2, 2, 2, 2, 2, 2, 4, 5], [0, 0, 1, 2, 3] * 2
    positions = torch.tensor([time, height, [0, 0, 1, 2, 3, 2, 3, 2, 3, 4, 5]])[:, None]
    assert len(width) == 10
    vision = torch.tensor([[False] * 3 + [True] * 6 + [False] * 2])
    mask = torch.tensor([[False] + [True] * 10])
    moved = behind_the_largest(positions, vision, mask)[:, 0].tolist()
    assert moved == [
        [0, 0, 1, 2, 2, 4, 4, 6, 6, 7, 8],
        [0, 0, 1, 2, 2, 2, 2, 2, 2, 7, 8],
        [0, 0, 1, 2, 3, 2, 3, 2, 3, 7, 8],
    ]


def test_a_second_video_moves_with_the_text_before_it() -> None:
    """A word, a video that ends at 5, a word (6), a video from 7 on, a word."""
    time = torch.tensor([0, 1, 5, 2, 3, 4, 4])
    space = torch.tensor([0, 1, 1, 2, 3, 3, 4])
    vision = torch.tensor([[False, True, True, False, True, True, False]])
    moved = behind_the_largest(torch.stack([time, space, space])[:, None], vision, torch.ones(1, 7, dtype=torch.bool))
    assert moved[:, 0].tolist() == [[0, 1, 5, 6, 7, 8, 9], [0, 1, 1, 6, 7, 7, 9], [0, 1, 1, 6, 7, 7, 9]]


@pytest.mark.parametrize("prefix", ["shared", "duplicate"])
def test_qwen2_5_vl_is_numbered_so_in_training_and_rollout(prefix: str, tmp_path: Path) -> None:
    """Eight frames four seconds apart: four grids of 2 x 2 whose times are 0, 16, 32 and 48 behind the first."""
    FAMILIES["qwen2_5_vl"](str(tmp_path))
    policy = make_policy(str(tmp_path), prefix=prefix)
    assert isinstance(policy.family, TextBehindTheVideo)
    prompt = VideoPrompt(id="p", video="clip", question="what color is it ?")
    batch = ProcessorEncoder(policy.processor)([prompt], [a_clip(8, spacing=4.0)])
    video = (batch.input_ids[0] == policy.config.video_token_id).nonzero().squeeze(-1)
    first, last = int(video[0]), int(video[-1])
    positions = policy.prompt_positions(batch)[:, 0]
    step = policy.config.vision_config.tokens_per_second * 8
    assert positions[0, video].unique().tolist() == [first + step * i for i in range(4)]
    behind = len(batch.input_ids[0]) - last - 1
    expected = [first + 3 * step + 1 + i for i in range(behind)]
    assert positions[:, last + 1 :].tolist() == [expected] * 3

    given: list[torch.Tensor] = []
    policy.network.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        policy.completion_logps(batch, random_completions(policy, 1, 1, 2))
    assert given[-1][-3:, 0, -2:].tolist() == [[expected[-1] + 1, expected[-1] + 2]] * 3


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_is_counted_is_what_the_decoder_is_handed(family: str, tmp_path: Path) -> None:
    """Asked by running the model up to its decoder, or by its ``get_rope_index``: the same."""
    FAMILIES[family](str(tmp_path))
    policy = make_policy(str(tmp_path))
    prompts = [VideoPrompt(id=q, video="clip", question=q) for q in ("what color is it ?", "what")]
    batch = ProcessorEncoder(policy.processor)(prompts, [a_clip(4), a_clip(4)])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.mm_inputs}
    handed = decoder_positions(policy.network, inputs)
    if handed is None or handed.ndim == 2:
        assert family in ("llava_onevision", "smolvlm")
        return
    counted = policy.family.counted(policy.network, batch)
    real = batch.attention_mask.bool().expand(counted.shape)
    assert handed[real].tolist() == counted[real].tolist()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_tower_is_all_outside_decoder_and_head(family: str, tmp_path: Path) -> None:
    FAMILIES[family](str(tmp_path))
    policy = make_policy(str(tmp_path))
    network = policy.network
    tower = {id(p) for p in policy.family.tower_parameters(network)}
    modules = {id(p) for part in policy.family.tower(network) for p in part.parameters()}
    assert modules <= tower
    rest = {id(p) for p in network.get_decoder().parameters()} | {id(p) for p in network.lm_head.parameters()}
    assert tower
    assert not tower & rest
    assert tower | rest == {id(p) for p in network.parameters()}


def test_placeholders_by_the_config() -> None:
    config = SimpleNamespace(
        model_type="any", image_token_id=5, video_token_index=3, audio_token_id=9, pad_token_id=1, image_size=7
    )
    assert Family().placeholder_ids(config) == [3, 5, 9]
    assert type(family_of(config)) is Family
