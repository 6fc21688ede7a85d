"""Checkpoints that hold more than the model that is trained: an Omni model's thinker beside what makes its voice.

The part is loaded from the whole (transformers finds its weights there by their names), and an export is the whole
again, with the part's weights replaced: it loads as either.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from orlaif.policy.asking import speaking
from orlaif.policy.hub import Source

log = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"


def with_attention(load: Callable[..., Any], path: str, **options: Any) -> Any:
    """``load(path, **options)``; with ``eager`` attention, and word of it, where a model has no ``sdpa``.

    Args:
        load: ``from_pretrained`` of a class.
        path: folder or hub id.
        options: of it.
    """
    try:
        return load(path, **options)
    except ValueError as error:  # before any weights are read
        if options.get("attn_implementation") != "sdpa" or "scaled_dot_product_attention" not in str(error):
            raise
        log.warning("%s has no attention by sdpa: it is loaded with policy.attn_implementation 'eager'", path)
        return load(path, **{**options, "attn_implementation": "eager"})


def load_part(path: str, part: Any, **options: Any) -> Any:
    """The model of a part of a checkpoint's config, whose weights are in the checkpoint of the whole.

    Args:
        path: folder or hub id of the whole.
        part: of its config (:func:`~orlaif.policy.asking.speaking`).
        options: of ``from_pretrained``.

    Raises:
        ValueError: the checkpoint holds no weights for some of it.
    """
    told = options.pop("output_loading_info", False)
    kind: Any = AutoModelForImageTextToText._model_mapping[type(part)]
    model, info = with_attention(kind.from_pretrained, path, config=part, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{path!r} has a part of type {part.model_type!r} that sees and speaks, but no weights for {missing[0]} "
            f"and {len(missing) - 1} more of it; name a video-language model"
        )
    return (model, info) if told else model


def holds_more(source: Source) -> bool:
    """Whether the checkpoint that a run starts from holds more than the model that is trained."""
    config = AutoConfig.from_pretrained(source.model, revision=source.revision)
    return speaking(config) not in (config, None)


def complete(folder: str, source: Source) -> None:
    """Make the whole checkpoint of an exported part: with all else that ``source`` has, as it is there.

    Args:
        folder: where the part's weights lie, by the names that they have in the whole, and its configuration.
        source: what the run started from.

    Raises:
        ValueError: the whole is not in safetensors, or its part's weights have other names.
    """
    place = source.model
    if not os.path.isdir(place):
        place = snapshot_download(place, revision=source.revision)
    if (single := Path(folder, "model.safetensors")).exists():  # which would be taken for all there is
        single.rename(Path(folder, "model-part.safetensors"))
    places = _weights(folder)
    ours = {name.partition(".")[0] for name in places}
    theirs = _weights(place)
    if not ours <= {name.partition(".")[0] for name in theirs}:
        raise ValueError(
            f"the export cannot be put back into {source.model}: its weights are called {min(places)} and so on, and "
            "there are none of that kind in safetensors"
        )
    rest = {name: file for name, file in theirs.items() if name.partition(".")[0] not in ours}
    for number, file in enumerate(sorted(set(rest.values()))):
        copied = f"model-rest-{number:05d}.safetensors"
        with safe_open(Path(place, file), "pt") as weights:
            kept = {name: weights.get_tensor(name) for name in weights.keys() if name in rest}  # noqa: SIM118
        save_file(kept, Path(folder, copied), metadata={"format": "pt"})
        places |= dict.fromkeys(kept, copied)
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    Path(folder, _INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    part = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    for path in Path(place).iterdir():  # configurations, and what a voice is made from
        if path.is_file() and path.suffix in (".json", ".pt") and not path.name.endswith(".index.json"):
            shutil.copy(path, Path(folder, path.name))
    _say_tied(Path(folder, "config.json"), part)


def _weights(folder: str) -> dict[str, str]:
    """The file of each weight in a folder, by the weight's name."""
    places: dict[str, str] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            places |= dict.fromkeys(weights.keys(), path.name)
    return places


def _say_tied(config: Path, part: dict[str, Any]) -> None:
    """Let the whole's configuration say whether the part's LM head is its embedding, which an adapter may change."""
    whole = json.loads(config.read_text(encoding="utf-8"))
    for below in whole.values():
        if isinstance(below, dict) and below.get("model_type") == part["model_type"]:
            for old, new in ((below, part), (below.get("text_config"), part.get("text_config"))):
                if old is not None and new is not None and "tie_word_embeddings" in new:
                    old["tie_word_embeddings"] = new["tie_word_embeddings"]
    config.write_text(json.dumps(whole, indent=2), encoding="utf-8")
