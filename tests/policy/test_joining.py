"""How prompts' inputs are laid one behind the other: dimensions, and places that go on counting."""

from __future__ import annotations

import torch

from orlaif.policy.joining import Joining, joining_of
from orlaif.policy.policy import Policy
from tests.zoo import folder_of


def test_places_count_what_lies_before_and_negative_ones_stay() -> None:
    """Two frames of three patches, then one frame: the second prompt's patches begin at 6, the third's at 9."""
    joining = Joining(counted={"pool": ("pixels", 2)})
    pixels = [torch.zeros(2, 3, 5), torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)]
    pool = [torch.tensor([[0, 5], [4, -1]]), torch.tensor([[0, 2]]), torch.tensor([[1, -1]])]
    joined = {
        name: joining.joined(name, values)
        for name, values in joining.counted_on({"pixels": pixels, "pool": pool}).items()
    }
    assert joined["pool"].tolist() == [[0, 5], [4, -1], [6, 8], [10, -1]]
    assert joined["pixels"].shape == (4, 3, 5)


def test_a_processor_is_asked_which_inputs_hold_places() -> None:
    """Molmo 2 says which patches make a token; grids and numbers of frames are no places."""
    for family, counted in (("molmo2", {"video_token_pooling": ("pixel_values_videos", 2)}), ("gemma4", {})):
        processor = Policy(folder_of(family)).processor
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what"}]}], tokenize=False
        )
        assert joining_of(processor, prompt).counted == counted
