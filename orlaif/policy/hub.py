"""What a path in a recipe names: a Hugging Face model, or a PEFT adapter and the model below it; and their processor.

Where a model's folder or hub id may stand, an adapter's may stand as well. :func:`find_source` tells which it is, and
where the adapter's base lies: an absolute path, or one relative to where we are, to the adapter or to a folder above it
(a run is often moved as a whole), else a hub id, of the revision that the adapter was trained on.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoProcessor
from transformers.utils import cached_file

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
_PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
#: What tokenizers, image and video processors and chat templates are saved as.
PROCESSOR_FILES = (
    "*processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.tt[cf]",  # fonts, of processors that write into frames
    "*.otf",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where weights and processor are loaded from.

    Args:
        path: as the recipe has it.
        model: absolute folder, or hub id, of a whole model.
        revision: of the hub id; None: the newest.
        adapter: folder of the PEFT adapter on that model, if there is one.
    """

    path: str
    model: str
    revision: str | None = None
    adapter: str | None = None

    @property
    def processor(self) -> tuple[str, str | None]:
        """Folder or hub id of the processor, and its revision: the adapter's where it has one, else the model's."""
        return self._place(*_PROCESSOR_CONFIGS)

    @property
    def tokenizer(self) -> tuple[str, str | None]:
        """The same of the tokenizer alone, of a model that has no processor."""
        return self._place("tokenizer_config.json")

    def _place(self, *names: str) -> tuple[str, str | None]:
        """The adapter's folder, if it has one of these files, else the model's, with its revision."""
        if self.adapter and any(os.path.exists(os.path.join(self.adapter, name)) for name in names):
            return self.adapter, None
        return self.model, self.revision


def find_source(path: str) -> Source:
    """What ``path`` names.

    Args:
        path: folder or hub id of a model or of a PEFT adapter.

    Raises:
        ValueError: a local path that holds neither, or both; an adapter whose base is not where it says.
        OSError: a hub id that cannot be reached, or that is none.
    """
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        is_model, is_adapter = _has(expanded, "config.json"), _has(expanded, ADAPTER_CONFIG)
        if is_model and is_adapter and _has(expanded, *_ADAPTER_WEIGHTS) and _has(expanded, *_MODEL_WEIGHTS):
            raise ValueError(
                f"checkpoint path is {path!r}: the folder holds a whole model and an adapter as well, so it is not "
                "clear which is meant; move one of them elsewhere"
            )
        if is_adapter and (not is_model or not _has(expanded, *_MODEL_WEIGHTS)):
            return _adapter_source(path, expanded)
        if not is_model:
            raise ValueError(
                f"checkpoint path is {path!r}: the folder holds no config.json (or {ADAPTER_CONFIG}), so it is no "
                "Hugging Face checkpoint"
            )
        return Source(path=path, model=os.path.abspath(expanded))
    if looks_local(path):
        raise ValueError(
            f"checkpoint path is {path!r}: no such folder (expected a Hugging Face checkpoint or a hub id)"
        )
    ask_the_hub_once()
    try:
        cached_file(path, "config.json")
    except OSError as error:
        if not _is_missing_entry(error):
            raise
        cached_file(path, ADAPTER_CONFIG)  # else its error says that there is neither
        return _adapter_source(path, snapshot_download(path, allow_patterns=["adapter_*", *PROCESSOR_FILES]))
    return Source(path=path, model=path)


@functools.cache
def ask_the_hub_once(timeout_s: float = 5.0) -> None:
    """Work offline where the hub cannot be reached, instead of asking six times for each file.

    What is in the cache is then used at once, and what is not is refused at once. Asked once per process.

    Args:
        timeout_s: for an answer, whatever it is.
    """
    if constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout_s)
    except Exception as error:  # of the HTTP library in use
        log.warning("%s cannot be reached (%s): only models in the cache can be used", constants.ENDPOINT, error)
        constants.HF_HUB_OFFLINE = True


def looks_local(path: str) -> bool:
    """Whether a path is none of the hub's ids."""
    return os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1 or os.path.exists(path)


def _has(folder: str, *patterns: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for name in os.listdir(folder) for pattern in patterns)


def _is_missing_entry(error: BaseException) -> bool:
    cause = error.__cause__ or error.__context__
    return isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)


def _adapter_source(path: str, folder: str) -> Source:
    """An adapter in a local folder, and its base."""
    with open(os.path.join(folder, ADAPTER_CONFIG), encoding="utf-8") as file:
        about: dict[str, Any] = json.load(file)
    base = about.get("base_model_name_or_path")
    where = f"base_model_name_or_path in its {ADAPTER_CONFIG}"
    if not _has(folder, *_ADAPTER_WEIGHTS):
        raise ValueError(f"checkpoint path is {path!r}: an adapter without weights ({', '.join(_ADAPTER_WEIGHTS)})")
    if not base:
        raise ValueError(f"checkpoint path is {path!r}: an adapter that does not name its base; set {where}")
    for place in _places(base, folder):
        if os.path.exists(os.path.join(place, "config.json")):
            return Source(path=path, model=place, adapter=os.path.abspath(folder))
        if os.path.exists(os.path.join(place, ADAPTER_CONFIG)):
            raise ValueError(
                f"checkpoint path is {path!r}: its base, {base!r}, is an adapter itself; make that one a whole model "
                f"first (orlaif export --ckpt {base} --to FOLDER --merge) and change {where}"
            )
    if looks_local(base):
        raise ValueError(
            f"checkpoint path is {path!r}: an adapter whose base model, {base!r}, is not there; put the base back, or "
            f"change {where}"
        )
    return Source(path=path, model=base, revision=about.get("revision"), adapter=os.path.abspath(folder))


def _places(base: str, folder: str) -> Iterator[str]:
    """Where a base may lie, by a path that may be relative."""
    base = os.path.expanduser(base)
    yield os.path.abspath(base)
    if not os.path.isabs(base):
        for above in (Path(folder).resolve(), *Path(folder).resolve().parents):
            yield os.path.abspath(above / base)


def check_checkpoint(path: str) -> None:
    """Raise ValueError for a path that can hold neither a model nor an adapter."""
    find_source(path)


def load_processor(path: str) -> Any:
    """The checkpoint's processor (of an adapter without one, its base's), set to pad prompts on the left."""
    place, revision = find_source(path).processor
    processor = AutoProcessor.from_pretrained(place, revision=revision)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def copy_processor(source: Source, folder: str) -> None:
    """Copy the processor's files to ``folder``, byte for byte, with whatever files they name (a font)."""
    place, revision = source.processor
    if not os.path.isdir(place):
        place = snapshot_download(place, revision=revision, allow_patterns=list(PROCESSOR_FILES))
    os.makedirs(folder, exist_ok=True)
    for name in processor_files(place):
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy(os.path.join(place, name), target)


def processor_files(folder: str) -> list[str]:
    """Names of the processor's files in a checkpoint's folder, and of those that its configuration names."""
    every = [str(path.relative_to(folder)) for path in sorted(Path(folder).glob("*")) if path.is_file()]
    every += [str(path.relative_to(folder)) for path in sorted(Path(folder).glob("additional_chat_templates/*"))]
    names = [name for name in every if any(fnmatch.fnmatch(name, pattern) for pattern in PROCESSOR_FILES)]
    named: set[str] = set()
    for name in names:
        if name.endswith("_config.json"):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                named |= set(_strings(json.load(file)))
    return sorted({*names, *(named & set(every))})


def _strings(tree: Any) -> Iterator[str]:
    """Every string that is a value somewhere in nested JSON."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, (dict, list)):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(value)
