"""What a part writes: figures as they come, so that one that is stopped has left what it had.

A part's file holds ``about`` (GPU, versions, commit), ``entries`` by name, ``not_measured`` (name: reason),
``failed`` (name: error) and ``finished``.
"""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import about, installed

PACKAGES = ("torch", "triton", "transformers", "lightning", "peft", "tensorboard", "pytest")
FURTHER = ("bitsandbytes", "flash-linear-attention", "jsonargparse", "liger-kernel", "torchcodec", "trl")


class MissingError(Exception):
    """Something is missing here that a measurement needs; the message says what."""


class Notebook:
    """Of one part.

    Args:
        part: its name.
        folder: where its file goes.
        seconds: it has.
        rehearse: at a small size.
        options: what the caller gave for all parts, such as a folder of videos.
    """

    def __init__(
        self, part: str, folder: Path, seconds: float, rehearse: bool, options: dict[str, Any] | None = None
    ) -> None:
        self.path = folder / f"{part}.json"
        self.until = time.monotonic() + seconds
        self.rehearse, self.options = rehearse, options or {}
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.began = time.monotonic()
        self.found: dict[str, Any] = {
            "part": part,
            "about": self._about(seconds),
            "entries": {},
            "not_measured": {},
            "failed": {},
            "finished": False,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def _about(self, seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            **about(self.cuda),
            "versions": installed(*PACKAGES, *FURTHER),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "cuda": torch.version.cuda,
            "rehearsal": self.rehearse,
            "limit_s": seconds,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        if self.cuda:
            properties = torch.cuda.get_device_properties(0)
            found["gpu_memory_bytes"] = properties.total_memory
            found["multiprocessors"] = properties.multi_processor_count
        return found

    @property
    def entries(self) -> dict[str, Any]:
        """What was measured, by name."""
        return self.found["entries"]

    def left(self) -> float:
        """Seconds until the part has to have stopped."""
        return self.until - time.monotonic()

    def measure(self, name: str, call: Callable[[], Any], takes_s: float = 30.0) -> None:
        """Measure one thing, and write down what came of it.

        Args:
            name: of the entry.
            call: returns it; raises :class:`MissingError` where something is missing.
            takes_s: about how long it takes; with less left it is not begun.
        """
        if self.left() < (0 if self.rehearse else takes_s):
            why = f"no time left: {max(0, self.left()):.0f} s of the part's limit"
            # What was not rehearsed may fail on the day.
            self.found["failed" if self.rehearse else "not_measured"][name] = why
            self.write()
            return
        begun = time.monotonic()
        try:
            self.entries[name] = call()
        except MissingError as reason:
            self.leave_out(name, str(reason))
        except Exception as error:
            self.found["failed"][name] = f"{type(error).__name__}: {error}"[:2000]
            traceback.print_exc()
            if self.cuda:
                torch.cuda.empty_cache()
        else:
            print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
        self.write()

    def fail(self, name: str, why: str) -> None:
        """Note that something was wrong though it ran."""
        self.found["failed"][name] = why
        print(f"{name}: FAILED: {why}", flush=True)
        self.write()

    def leave_out(self, name: str, why: str) -> None:
        """Note that something is missing here that a measurement needs."""
        self.found["not_measured"][name] = why
        self.write()

    def write(self, finished: bool = False) -> None:
        """Onto the disk, whole or not at all."""
        self.found |= {"finished": finished, "seconds": round(time.monotonic() - self.began, 1)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)
