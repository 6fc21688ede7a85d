"""A prompt becomes the same whatever stands beside it, and what it becomes is what its clip says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder, sub_batches, video_metadata
from orlaif.policy.families import Family
from orlaif.rollout import SamplingParams, generate
from orlaif.types import PromptBatch, VideoClip, VideoPrompt
from tests.conftest import make_policy, random_completions
from tests.families import FAMILIES

RAGGED = [(4, "what color is it ?"), (10, "what"), (4, "is it a circle ?"), (6, "where is it ?")]


def a_clip(num_frames: int, start_s: float = 0.0, spacing: float = 0.5, duration_s: float | None = None) -> VideoClip:
    generator = torch.Generator().manual_seed(num_frames)
    frames = torch.randint(0, 256, (num_frames, 3, 56, 56), generator=generator, dtype=torch.uint8)
    pts_s = start_s + torch.arange(num_frames, dtype=torch.float64) * spacing
    return VideoClip(frames=frames, pts_s=pts_s, duration_s=duration_s or num_frames * spacing, path="clip")


def prompts_and_clips() -> tuple[list[VideoPrompt], list[VideoClip]]:
    prompts = [VideoPrompt(id=f"p{i}", video="clip", question=question) for i, (_, question) in enumerate(RAGGED)]
    return prompts, [a_clip(n) for n, _ in RAGGED]


@pytest.mark.parametrize("prefix", ["shared", "duplicate"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_clips_of_unequal_lengths(family: str, prefix: Any, tmp_path: Path) -> None:
    """Tokens, sampled answers, log-probs and the gradient of their sum: in a ragged batch as one by one."""
    FAMILIES[family](str(tmp_path))
    policy = make_policy(str(tmp_path), prefix=prefix)
    encoder = ProcessorEncoder(policy.processor, family=policy.family)
    prompts, clips = prompts_and_clips()
    batch = encoder(prompts, clips)
    singles = [encoder([prompt], [clip]) for prompt, clip in zip(prompts, clips, strict=True)]
    for i, single in enumerate(singles):
        assert batch.input_ids[i][batch.attention_mask[i].bool()].tolist() == single.input_ids[0].tolist()

    sampling = SamplingParams(max_new_tokens=5, temperature=0.0)
    together = generate(policy, batch, 2, sampling)
    for i, single in enumerate(singles):
        alone = generate(policy, single, 2, sampling)
        n = alone.ids.shape[-1]
        assert together.ids[i, :, :n][alone.mask[0]].tolist() == alone.ids[0][alone.mask[0]].tolist()
        assert together.texts[i] == alone.texts[0]

    completions = random_completions(policy, len(RAGGED), 2, 4)
    logps = policy.completion_logps(batch, completions)
    logps.sum().backward()
    together_grad = policy.network.lm_head.weight.grad.clone()
    policy.network.zero_grad()
    for i, single in enumerate(singles):
        alone = policy.completion_logps(single, completions.of_prompts(torch.tensor([i])))
        alone.sum().backward()
        torch.testing.assert_close(logps[i].detach(), alone[0].detach(), atol=2e-5, rtol=0)
    grad = policy.network.lm_head.weight.grad
    assert float((grad - together_grad).abs().max()) <= 1e-5 * float(grad.abs().max())


def test_parts_keep_the_prompts_whose_shapes_agree(tmp_path: Path) -> None:
    """LLaVA-OneVision stacks frames: three lengths are three passes, in the order in which they first occur."""
    FAMILIES["llava_onevision"](str(tmp_path))
    processor = Policy(str(tmp_path)).processor
    parts = sub_batches(ProcessorEncoder(processor)(*prompts_and_clips()), Family())
    assert [at.tolist() for at, _ in parts] == [[0, 2], [1], [3]]
    assert [part.mm_inputs["pixel_values_videos"].shape[:2] for _, part in parts] == [(2, 4), (1, 10), (1, 6)]
    assert all(bool(part.attention_mask[:, -1].all()) and bool(part.attention_mask[:, 0].any()) for _, part in parts)
    assert [prompt.id for prompt in parts[0][1].prompts] == ["p0", "p2"]


@pytest.mark.parametrize(("template_writes_it", "expected"), [(True, 1), (False, 1)])
def test_one_beginning_of_sequence(template_writes_it: bool, expected: int, tiny_model: str) -> None:
    """The tokenizer adds it, and the template may write it."""
    processor = Policy(tiny_model).processor
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "circle"
    start = [("circle", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="circle $A", special_tokens=start)
    if template_writes_it:
        processor.chat_template = "{{ bos_token }}" + processor.chat_template
    prompt = VideoPrompt(id="p", video="clip", question="what color is it ?")
    batch = ProcessorEncoder(processor)([prompt], [a_clip(4)])
    assert int((batch.input_ids == tokenizer.bos_token_id).sum()) == expected


def test_frames_that_a_processor_draws_into_are_copies(tiny_model: str) -> None:
    processor = Policy(tiny_model).processor
    clip = a_clip(4)
    before = clip.frames.clone()
    drawn: list[torch.Tensor] = []

    class Draws:
        tokenizer = processor.tokenizer

        def __call__(self, *, videos: Any, **kwargs: Any) -> Any:
            videos[0][0].zero_()
            drawn.append(videos[0][0])
            return processor(videos=videos, **kwargs)

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            return processor.apply_chat_template(*args, **kwargs)

    batch = ProcessorEncoder(Draws())([VideoPrompt(id="p", video="clip", question="what")], [clip])
    assert not bool(drawn[0].any())
    assert torch.equal(batch.clips[0].frames, before)


@pytest.mark.parametrize(
    ("clip", "segment", "rate"),
    [
        (a_clip(8, spacing=0.5), (None, None), 2.0),  # a whole file
        (a_clip(8, start_s=4.25, spacing=0.5, duration_s=20.0), (4.0, 8.0), 2.0),
        (a_clip(8, start_s=4.26, spacing=0.49, duration_s=20.0), (4.0, 8.0), 2.0),  # frames on the file's own grid
        (a_clip(8, start_s=4.25, spacing=0.5, duration_s=20.0), (None, None), 2.0),  # a sampling with a segment
        (a_clip(4, start_s=18.5, spacing=0.5, duration_s=20.0), (18.0, 40.0), 2.0),  # an end behind the file's
    ],
)
def test_the_rate_is_that_of_what_was_sampled(
    clip: VideoClip, segment: tuple[float | None, float | None], rate: float
) -> None:
    prompt = VideoPrompt(id="p", video="clip", question="what", start_s=segment[0], end_s=segment[1])
    metadata = video_metadata(clip, prompt)
    assert metadata.sampled_fps == pytest.approx(rate, abs=1e-9)
    assert metadata.timestamps == pytest.approx(clip.pts_s.tolist(), abs=1e-3)
    assert metadata.duration == clip.duration_s


def test_a_recipe_may_bring_a_family(tiny_model: str) -> None:
    """Here one that reads every question twice."""

    class Twice(Family):
        def encode(self, processor: Any, prompt: str, clip: VideoClip, metadata: Any) -> dict[str, Any]:
            return super().encode(processor, prompt.replace("what", "what what"), clip, metadata)

    policy = Policy(tiny_model, dtype="float32", family=Twice())
    prompts, clips = [VideoPrompt(id="p", video="clip", question="what")], [a_clip(4)]
    lengths = [
        ProcessorEncoder(policy.processor, family=family)(prompts, clips).input_ids.shape[1]
        for family in (policy.family, None)
    ]
    assert lengths[0] == lengths[1] + 1


def test_a_batch_may_hold_a_tensor_for_each_prompt() -> None:
    prompts, clips = prompts_and_clips()
    ids = torch.ones(4, 3, dtype=torch.int64)
    pixels = [torch.zeros(1, n) for n, _ in RAGGED]
    batch = PromptBatch(
        prompts=tuple(prompts),
        clips=tuple(clips),
        input_ids=ids,
        attention_mask=ids,
        mm_inputs={"pixel_values_videos": pixels},
    )
    moved = batch.to("cpu").mm_inputs["pixel_values_videos"]
    assert [value.shape[1] for value in moved] == [n for n, _ in RAGGED]
    assert all(isinstance(value, torch.Tensor) for value in moved)
