"""What an engine is asked, and what it answers: prompts and clips to vLLM's requests, and its outputs to completions.

Shapes: P prompts, G completions per prompt, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from orlaif.policy import Policy
from orlaif.policy.encoding import video_metadata, videos_of
from orlaif.types import Completions, Picture, PromptBatch, VideoClip


def requests_of(policy: Policy, batch: PromptBatch) -> list[dict[str, Any]]:
    """Prompts with their frames, as ``vllm.LLM.generate`` takes them: the same frames and times as the policy's.

    Args:
        policy: whose tokenizer says which beginning of a text it adds itself.
        batch: P prompts.
    """
    requests = []
    for prompt, text, seen in zip(batch.prompts, batch.texts, batch.clips, strict=True):
        request: dict[str, Any] = {"prompt": begun_once(policy.processor.tokenizer, text)}
        clips = [item for item in seen.items if isinstance(item, VideoClip)]
        pictures = [item.pixels.permute(1, 2, 0).cpu().numpy() for item in seen.items if isinstance(item, Picture)]
        shown: dict[str, Any] = {}
        if clips:
            abouts = [video_metadata(clip, about) for clip, about in zip(clips, videos_of(prompt), strict=True)]
            rates = {about.sampled_fps for about in abouts}
            if len(rates) > 1:
                raise ValueError(
                    f"prompt {prompt.id!r} shows videos of {sorted(rates)} frames per second, and vLLM is told one "
                    "rate per prompt; use orlaif.rollout.Rollout, or a sampling by frames per second"
                )
            shown["video"] = [_with_times(clip, about) for clip, about in zip(clips, abouts, strict=True)]
            request["mm_processor_kwargs"] = {"do_sample_frames": False, "fps": rates.pop()}
        if pictures:
            shown["image"] = [Image.fromarray(pixels) for pixels in pictures]
        if shown:
            request["multi_modal_data"] = shown
        requests.append(request)
    return requests


def _with_times(clip: VideoClip, metadata: VideoMetadata) -> tuple[Any, dict[str, Any]]:
    """Frames u8[F, H, W, 3] as an array, and when they are."""
    about = {
        "total_num_frames": metadata.total_num_frames,
        "fps": metadata.fps,
        "duration": metadata.duration,
        "frames_indices": metadata.frames_indices,
        "video_backend": "torchcodec",
        "do_sample_frames": False,
    }
    return clip.frames.permute(0, 2, 3, 1).cpu().numpy(), about


def begun_once(tokenizer: Any, text: str) -> str:
    """``text`` without the beginning-of-sequence that a template has written, where the tokenizer adds one too."""
    begin = tokenizer.bos_token
    if begin is None or not text.startswith(begin):
        return text
    rest = text.removeprefix(begin)
    return rest if tokenizer(rest).input_ids[:1] == [tokenizer.bos_token_id] else text


def check_prompts(batch: PromptBatch, outputs: Sequence[Any]) -> None:
    """Refuse an engine that has made other tokens of a prompt than the model's processor.

    Raises:
        ValueError: the prompt by its id.
    """
    for prompt, output, ids, mask in zip(batch.prompts, outputs, batch.input_ids, batch.attention_mask, strict=True):
        if list(output.prompt_token_ids) != ids[mask.bool()].tolist():
            raise ValueError(
                f"vLLM made {len(output.prompt_token_ids)} tokens of prompt {prompt.id!r}, other ones than the "
                f"model's processor ({int(mask.sum())}); use orlaif.rollout.Rollout for this model"
            )


def completions_of(policy: Policy, outputs: Sequence[Any], device: torch.device) -> Completions:
    """Completions [P, G, T] of P outputs, with the log-probs by which they were sampled."""
    rows = [[list(answer.token_ids) for answer in output.outputs] for output in outputs]
    texts = policy.processor.tokenizer.batch_decode([row for group in rows for row in group], skip_special_tokens=True)
    g = len(rows[0])
    answers = tuple(tuple(text.strip() for text in texts[i * g : (i + 1) * g]) for i in range(len(rows)))
    made = Completions.padded(rows, answers, policy.pad_id, device)
    logps = torch.zeros(made.ids.shape, dtype=torch.float32)
    for i, output in enumerate(outputs):
        for j, answer in enumerate(output.outputs):
            drawn = [table[token].logprob for token, table in zip(answer.token_ids, answer.logprobs, strict=True)]
            logps[i, j, : len(drawn)] = torch.tensor(drawn)
    return Completions(ids=made.ids, mask=made.mask, texts=made.texts, logps=logps.to(device))
