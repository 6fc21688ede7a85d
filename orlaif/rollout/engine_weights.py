"""The policy's weights as an engine beside the trainer reads them: whole, adapter added, by the checkpoint's names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import glob

from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from orlaif.policy import Policy, lora
from orlaif.policy.asking import base_of


def whole_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Names, as in the loaded base model, and weights with the adapter's part added, not quantised; nothing is changed.

    Args:
        policy: loaded; gathered, where it is sharded.
    """
    from peft.utils.integrations import dequantize_module_weight

    base = base_of(policy.network)
    changed = dict(lora.adapted_weights(base))
    for name, weight in base.named_parameters(remove_duplicate=False):  # a state dict would shard them again
        words = name.split(".")
        if "base_layer" in words:
            name = ".".join(word for word in words if word != "base_layer")
            yield name, changed.pop(name, weight)
        elif not any(word.startswith("lora_") for word in words):
            quantised = policy.quantization is not None and words[-1] == "weight"
            yield name, dequantize_module_weight(base.get_submodule(".".join(words[:-1]))) if quantised else weight


def checkpoint_weights(policy: Policy) -> dict[str, Tensor]:
    """The same under the names, and in the layout, of the checkpoint that was loaded, as vLLM reads it.

    transformers knows how it renamed weights on loading and undoes that. A name of the checkpoint that is left over,
    since transformers reads it otherwise than its publisher wrote it, goes to the weight that ends as it does.

    Args:
        policy: as for :func:`whole_weights`.
    """
    weights = revert_weight_conversion(base_of(policy.network), dict(whole_weights(policy)))
    published = _published_names(policy.source.model, policy.source.revision)
    unnamed = [name for name in weights if name not in published]
    for name in sorted(published - weights.keys()):
        ending = ".".join(name.split(".")[-2:])
        if len(same := [other for other in unnamed if f".{other}".endswith(f".{ending}")]) == 1:
            weights[name] = weights.pop(same[0])
            unnamed.remove(same[0])
    return weights


def _published_names(path: str, revision: str | None) -> set[str]:
    """Names of the weights in a checkpoint's safetensors files: of a folder, or of a hub id that has been loaded."""
    folder = path if os.path.isdir(path) else snapshot_download(path, revision=revision, local_files_only=True)
    names: set[str] = set()
    for file in glob(os.path.join(folder, "*.safetensors")):
        with safe_open(file, "pt") as weights:
            names |= set(weights.keys())
    return names
