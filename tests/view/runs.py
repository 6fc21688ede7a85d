"""Folders of runs, as KeepSamples leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orlaif.samples import ShardWriter


def answer(text: str, rank: int, **more: Any) -> dict[str, Any]:
    tokens = text.split() or [""]
    plain = {"text": text, "rank": rank, "score": None, "advantage": 0.5 - rank, "kl": 0.1, "tokens": tokens}
    return {**plain, "logps": [-0.5 - i for i in range(len(tokens))], "trainer_logps": None, **more}


def group(step: int, prompt: str, *answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    asked = {
        "id": prompt,
        "question": f"What is in {prompt}?",
        "answer": more.pop("reference", None),
        "category": "what",
    }
    seen = more.pop("seen", [])
    plain = {"step": step, "epoch": 0, "batch": step, "process": 0, "time": 0.0, "seconds": {"rollout": 1, "oracle": 2}}
    return {**plain, "prompt": asked, "seen": seen, "failure": None, "exchanges": [], "answers": list(answers), **more}


def run(folder: Path, groups: list[dict[str, Any]]) -> Path:
    writer = ShardWriter(folder / "samples", 1, 0, 10**9)
    writer.write(groups)
    writer.close()
    return folder
