"""Predictions as files: lines of JSON that are there as soon as they are made, whatever ends the run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from glob import escape, glob
from typing import Any

from orlaif.answer_format import AnswerFormat
from orlaif.evaluation.suite import Record
from orlaif.types import Prompt, Prompts

log = logging.getLogger(__name__)


class Predictions:
    """What one stage of a run wrote to ``<run_dir>/predictions``: a file, or one for each of several processes.

    Args:
        run_dir: folder of the run.
        name: of the stage; the file is ``<name>.jsonl``, or ``<name>-process<i>.jsonl``.
        process_index: which process this is.
        num_processes: how many there are.
    """

    def __init__(self, run_dir: str, name: str, process_index: int = 0, num_processes: int = 1) -> None:
        self.folder = os.path.join(run_dir, "predictions")
        self.name = name
        self.path = os.path.join(
            self.folder, f"{name}-process{process_index}.jsonl" if num_processes > 1 else f"{name}.jsonl"
        )

    def paths(self) -> list[str]:
        """The files of all processes, of this run and earlier ones on other numbers of processes."""
        folder = escape(self.folder)
        return [p for end in (".jsonl", "-*.jsonl") for p in sorted(glob(os.path.join(folder, self.name + end)))]

    def clear(self) -> None:
        """An empty file for this process."""
        os.makedirs(self.folder, exist_ok=True)
        open(self.path, "w").close()

    def append(self, records: Iterable[Record]) -> None:
        """Add lines to this process's file."""
        os.makedirs(self.folder, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def remove(self) -> None:
        """The files of all processes are gone."""
        for path in self.paths():
            os.remove(path)

    def cut(self) -> None:
        """Take a last line that a killed process left half written off this process's file, before more is added."""
        if not os.path.exists(self.path):
            return
        with open(self.path, "rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def read(self) -> list[Record]:
        """The lines of all processes, but for last ones that are half written; others that are no record are said."""
        records: list[Record] = []
        for path in self.paths():
            with open(path, "rb") as file:
                *lines, _ = file.read().split(b"\n")
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    records.append(record)
                else:
                    log.warning("%s, line %d: no prediction can be read there; it does not count", path, number)
        return records


def question_key(prompt: Prompt) -> str:
    """A hash of all that a model is shown of a prompt; not of its labels, which an answer does not depend on.

    A video counts by its path and its size, so that one that was replaced is asked about again.
    """
    if prompt.turns:
        paths = [path for part in prompt.media for path in (getattr(part, "frames", None) or (part.path,))]
        said = [
            [turn.role, [[type(part).__name__, *vars(part).values()] for part in turn.parts]] for turn in prompt.turns
        ]
        sizes = [os.path.getsize(path) if os.path.exists(path) else None for path in paths]
        return hashlib.sha256(json.dumps([said, sizes]).encode()).hexdigest()[:16]
    files = [prompt.video] if prompt.frames is None else list(prompt.frames)
    sizes = [os.path.getsize(path) if os.path.exists(path) else None for path in files]
    shown = [prompt.question, prompt.history, files, sizes, prompt.frames_fps, prompt.start_s, prompt.end_s]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def labels_key(prompts: Prompts) -> str:
    """A hash of what grades depend on besides the answers: what is right, and how it is broken down."""
    labels = [
        (p.id, p.answer, p.options, p.category, sorted(p.tags.items()))
        for p in (prompts[i] for i in range(len(prompts)))
    ]
    return hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16]


def as_read(text: str, answer_format: AnswerFormat) -> Record:
    """``prediction``: the answer, empty where the text holds none; the text itself as ``completion``, if it is more."""
    answer = answer_format.read(text).answer
    return {"prediction": text} if answer == text else {"prediction": answer or "", "completion": text}


def written(record: Record) -> str:
    """The text that a prediction was read from."""
    return str(record.get("completion", record["prediction"]))


def record_of(prompt: Prompt, text: str, answer_format: AnswerFormat) -> Record:
    """A prediction as suites grade it (``orlaif.evaluation.suite``), with the labels that the data has now.

    Args:
        prompt: the question.
        text: what the model wrote.
        answer_format: of the policy.
    """
    record: Record = {
        "id": prompt.id,
        "question": prompt.question,
        **as_read(text, answer_format),
        "category": prompt.category,
        "tags": dict(prompt.tags),
    }
    if prompt.answer is not None:
        record["answer"] = prompt.answer
    if prompt.options is not None:
        record["options"] = list(prompt.options)
    return record


def read_object(path: str) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none, and, said, where it cannot be read."""
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        log.warning("%s cannot be read; it does not count", path)
        return None
    return value


def write_object(path: str, value: dict[str, Any]) -> None:
    """Write a JSON object to a file, which is complete or not there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
    os.replace(f"{path}.part", path)


def changed_names(before: dict[str, Any], now: dict[str, Any], names: Sequence[str] | None = None) -> list[str]:
    """Under which names (by default all) two objects differ, in order."""
    return [name for name in sorted(names or before.keys() | now.keys()) if before.get(name) != now.get(name)]
