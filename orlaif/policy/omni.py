"""Qwen's Omni models: their thinker watches, and, where a recipe wants it, hears the sound of the video as well.

A recipe asks for the sound by ``policy.family: {class_path: orlaif.policy.omni.Omni, init_args: {sound: true}}``: each
clip's sound track is decoded from its file and handed to the processor, which lays its tokens between those of the
frames, by their times.

Shapes: P prompts, n mel frames of a sound.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.video_utils import VideoMetadata

from orlaif.policy.asking import process, sorted_out
from orlaif.policy.families import SYNTHETIC, Family, overrides
from orlaif.types import Picture, PromptBatch, Seen, VideoClip, VideoError

#: Inputs of the sound, padded to the longest of a batch: f[1, mels, n] and i64[1, n].
_FEATURES, _MASK = "input_features", "feature_attention_mask"


@overrides("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
class Omni(Family):
    """The thinker of Qwen2.5-Omni and Qwen3-Omni.

    Args:
        sound: the model hears each clip as well, from its first frame to the end of its last one.
    """

    def __init__(self, sound: bool = False) -> None:
        super().__init__()
        self.sound = sound

    def encode(self, processor: Any, prompt: str, clip: Seen, metadata: VideoMetadata) -> dict[str, Any]:
        """As any family; the processor is told how far the frames are apart, for it does not read metadata.

        Raises:
            VideoError: ``sound``, and the clip's file has none.
        """
        more: dict[str, Any] = {"fps": 1 / float(clip.pts_s.diff().mean())}
        if self.sound:
            rate = processor.feature_extractor.sampling_rate
            more["audio"] = [sound_of(clip, rate).numpy()]
            if hasattr(processor, "load_audio_from_video"):
                more |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
            else:
                more["use_audio_in_video"] = True
        inputs = process(processor, [prompt], [[clip.frames.clone()]], [metadata], **more)
        if self.sound:
            inputs["audio_feature_lengths"] = inputs[_MASK].sum(-1)
        return inputs

    def encode_media(
        self, processor: Any, prompt: str, items: Sequence[Picture | VideoClip], metadata: Sequence[VideoMetadata]
    ) -> dict[str, Any]:
        """As any family; its processor is told one spacing of frames, and hears one video.

        Raises:
            ValueError: ``sound`` with anything but one video, or videos whose frames are unequally far apart.
        """
        if self.sound:
            raise ValueError("with policy.family: sound, a prompt shows one video and nothing else")
        spacings = {round(float(item.pts_s.diff().mean()), 6) for item in items if isinstance(item, VideoClip)}
        if len(spacings) > 1:
            raise ValueError(f"frames of its videos are {sorted(spacings)} s apart; this processor takes one spacing")
        more: dict[str, Any] = {"fps": 1 / spacings.pop()} if spacings else {}
        videos, about, images = sorted_out(items, metadata)
        return process(processor, [prompt], videos, about, images, **more)

    def collate(self, encoded: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
        """As any family, and sounds padded to the longest: never as long as the prompts, to be told from tokens."""
        if not self.sound:
            return super().collate(encoded, pad_id)
        batch = super().collate(
            [{k: v for k, v in one.items() if k not in (_FEATURES, _MASK)} for one in encoded], pad_id
        )
        longest = max(one[_MASK].shape[-1] for one in encoded)
        longest += longest == batch["input_ids"].shape[1]
        for name in (_FEATURES, _MASK):
            batch[name] = torch.cat(
                [nn.functional.pad(one[name], (0, longest - one[name].shape[-1])) for one in encoded]
            )
        return batch

    def inputs(self, model: Any, batch: PromptBatch) -> dict[str, Any]:
        """As any family, and that the sound is the video's."""
        heard = {"use_audio_in_video": True} if _MASK in batch.mm_inputs else {}
        return super().inputs(model, batch) | heard


def sound_of(clip: Seen, rate: int) -> Tensor:
    """The sound of a clip, f32[samples], one channel; noise for a clip that was made up.

    Args:
        clip: from a file with a sound track.
        rate: samples per second.

    Raises:
        VideoError: its file has no sound then, or is none.
    """
    spacing = float(clip.pts_s.diff().mean())
    length_s = len(clip.pts_s) * spacing
    if clip.path == SYNTHETIC:
        return torch.randn(int(length_s * rate), generator=torch.Generator().manual_seed(len(clip.pts_s))) * 0.1
    if not os.path.isfile(clip.path):
        raise VideoError(clip.path, "is no file, so it has no sound track (policy.family: sound)")
    from torchcodec.decoders import AudioDecoder, get_container_metadata

    try:
        about = get_container_metadata(clip.path)
        stream: Any = about.streams[about.best_video_stream_index or 0]
        begin_s = (stream.begin_stream_seconds_from_header or 0.0) + float(clip.pts_s[0])
        decoder = AudioDecoder(clip.path, sample_rate=rate, num_channels=1)
        return decoder.get_samples_played_in_range(begin_s, begin_s + length_s).data[0]
    except (RuntimeError, ValueError, IndexError) as error:
        cause = str(error).strip().split("\n")[0]
        raise VideoError(clip.path, f"has no sound that can be decoded ({cause}); policy.family: sound") from error
