"""Decoded clips on disk, so that a second epoch, or the next run, decodes nothing.

A clip is known by its file (path, size, time of change), its segment, and what was asked of the decoder; a changed file
is decoded anew, and so is every clip once decoding itself has changed. Files are written under another name and
renamed: processes may share a folder and be killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from orlaif.data.rows import is_url
from orlaif.data.video import PixelBudget, Sampling, decode_clip
from orlaif.types import Prompt, VideoClip

#: Goes up when the frames that :func:`~orlaif.data.video.decode_clip` gives for the same file change.
_DECODING = 2


class ClipCache:
    """``decode_clip`` with a folder behind it; frames are kept as they are, 3 bytes a pixel.

    Args:
        folder: made where it is missing.

    Raises:
        ValueError: on use, a sampling that is no dataclass, whose settings cannot be told apart.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.hits = self.misses = 0

    def _key(self, prompt: Prompt, sampling: Sampling, budget: PixelBudget | None) -> str:
        if not dataclasses.is_dataclass(sampling):
            raise ValueError(f"data.clip_cache needs a sampling that is a dataclass; {type(sampling).__name__} is none")
        files = []
        for path in prompt.frames or (prompt.video,):
            if is_url(path):
                files.append((path, 0, 0))
            else:
                known = os.stat(path)
                files.append((os.path.abspath(path), known.st_size, known.st_mtime_ns))
        what = [_DECODING, files, prompt.start_s, prompt.end_s, prompt.frames_fps, repr(sampling), repr(budget)]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def __call__(
        self, prompt: Prompt, sampling: Sampling, device: str = "cpu", budget: PixelBudget | None = None
    ) -> VideoClip:
        """As :func:`~orlaif.data.video.decode_clip`; only clips that could be decoded are kept."""
        try:
            key = self._key(prompt, sampling, budget)
        except (OSError, UnicodeError):  # no such video, or no such name: the decoder says so in its words
            return decode_clip(prompt, sampling, device, budget)
        path = os.path.join(self.folder, f"{key}.safetensors")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
                clip = VideoClip(
                    frames=file.get_tensor("frames").to(device),
                    pts_s=file.get_tensor("pts_s"),
                    duration_s=float(about["duration_s"]),
                    path=prompt.video,
                )
            self.hits += 1
            return clip
        except (OSError, SafetensorError, TypeError, KeyError):  # not kept yet, or not by us
            pass
        clip = decode_clip(prompt, sampling, device, budget)
        self.misses += 1
        os.makedirs(self.folder, exist_ok=True)
        partial = f"{path}.{os.getpid()}-{threading.get_ident()}.partial"
        tensors = {"frames": clip.frames.cpu().contiguous(), "pts_s": clip.pts_s.to(torch.float64).contiguous()}
        save_file(tensors, partial, {"duration_s": repr(clip.duration_s)})
        os.replace(partial, path)
        return clip
