"""``orlaif export --ckpt run/checkpoints/last --to folder [--merge]``: a Hugging Face folder from any checkpoint.

The recipe is the one that the checkpoint, or its run's folder, keeps; ``--config`` names another. An adapter's folder
is a checkpoint as well: with ``--merge`` it becomes a whole model.
"""

from __future__ import annotations

import ast
import json
import os
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from lightning import LightningModule
from transformers import AutoConfig

from orlaif.arguments import HelperParser
from orlaif.cli.grammar import sentence
from orlaif.cli.quiet import quiet_libraries
from orlaif.cli.words import RecipeError, import_from, prepare, read_document
from orlaif.distributed.checkpoint_io import SafeCheckpointIO, is_sharded_checkpoint, newest_checkpoint, read_about
from orlaif.distributed.sync import flattened
from orlaif.policy import Policy
from orlaif.policy.export import check_target
from orlaif.policy.hub import ADAPTER_CONFIG, find_source
from orlaif.policy.lora import is_reference
from orlaif.status_line import StatusLine
from orlaif.training.base import PolicyModule
from orlaif.training.resume import base_fingerprint

#: What a run keeps of its recipe, in its folder.
RECIPE_FILE = "config.yaml"


def export_checkpoint(
    ckpt: str, folder: str, merge: bool = False, configs: Sequence[str] = (), overrides: Sequence[str] = ()
) -> str:
    """Write the policy (or ranker) of a checkpoint to a folder.

    Args:
        ckpt: a checkpoint's file or folder; a run's folder, or ``last`` in it, for the newest; or a PEFT adapter.
        folder: of the export; an earlier export there is replaced.
        merge: with LoRA, a whole model with the adapter merged into it.
        configs: recipes to read instead of the one that was kept, the later over the earlier.
        overrides: such as ``--model.init_args.policy.init_args.path=elsewhere``.

    Returns:
        What was done, in words.

    Raises:
        ValueError: there is no checkpoint or recipe, they do not belong together, or ``folder`` holds something else.
    """
    check_target(folder)
    if any(os.path.exists(os.path.join(ckpt, name)) for name in (ADAPTER_CONFIG, "config.json")):
        return _export_folder(ckpt, folder, merge)
    path = find_checkpoint(ckpt)
    read_about(path)  # says what is wrong with it
    checkpoint = SafeCheckpointIO().load_checkpoint(path, map_location="cpu", weights_only=False)
    if configs:
        documents = [read_document(name) for name in configs]
        import_from([os.path.dirname(os.path.abspath(document.path)) for document in documents])
        models = [yaml.safe_load(document.text).get("model", {}) for document in documents]
    else:
        models = [kept_model(path, checkpoint)]
    module = read_module(models, overrides)
    _find_start(module.policy, path)
    load_weights(module, checkpoint, path)
    module.export(folder, merge)
    return f"exported step {checkpoint.get('global_step')} of {path} to {folder}"


def find_checkpoint(ckpt: str) -> Path:
    """What ``ckpt`` names: itself, or the newest checkpoint below a folder; raises ValueError where there is none.

    A folder of several runs names none of them.
    """
    path = Path(ckpt).expanduser()
    if path.is_file() or is_sharded_checkpoint(path):
        return path
    folder = path.parent if path.name == "last" and not path.is_dir() else path
    if (newest := newest_checkpoint(folder)) is None:
        raise ValueError(f"--ckpt is {ckpt!r}: no checkpoint there; name a .ckpt, or the folder of a run that has one")
    runs = {_run_of(one, folder) for one in Path(folder).rglob("*.ckpt")}
    if len(runs) > 1:
        some = ", ".join(sorted(map(str, runs))[:5])
        raise ValueError(f"--ckpt is {ckpt!r}, which holds the checkpoints of several runs; name one of {some}")
    return newest


def _run_of(checkpoint: Path, folder: Path) -> Path:
    """The folder below ``folder`` that keeps a checkpoint's recipe, or ``folder`` itself."""
    above = [one for one in checkpoint.parents if one == folder or folder in one.parents]
    return next((one for one in above if (one / RECIPE_FILE).is_file()), folder)


def kept_model(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the recipe of a checkpoint says of the model.

    The run's folder has the recipe as it was written, unless another command has been there since; what the checkpoint
    itself keeps decides.
    """
    inside = {name: value for name, value in checkpoint.get("recipe", {}).items() if name.startswith("model.")}
    for folder in path.absolute().parents[:3]:
        if (folder / RECIPE_FILE).is_file():
            written = yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8"))
            if not inside or flattened({"model": written.get("model")}) == inside:
                model: dict[str, Any] = written["model"]
                return model
    if not inside:
        raise ValueError(f"--ckpt {path}: its run has left no {RECIPE_FILE} beside it; name the recipe with --config")
    return _nested(inside)["model"]  # type: ignore[no-any-return]


def _nested(recipe: dict[str, str]) -> dict[str, Any]:
    """Nested settings from dotted names, the inverse of :func:`orlaif.distributed.sync.flattened`."""
    tree: dict[str, Any] = {}
    for name, value in recipe.items():
        at = tree
        *above, last = name.split(".")
        for word in above:
            at = at.setdefault(word, {})
        at[last] = ast.literal_eval(value)
    return tree


def read_module(models: Sequence[dict[str, Any]], overrides: Sequence[str]) -> PolicyModule:
    """The module that recipes name, without weights; raises ValueError for one that cannot be exported.

    Args:
        models: what each recipe says of the model, the later over the earlier.
        overrides: words of a command line.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    words = [word for model in models for word in ("--config", json.dumps({"model": model}))]
    prepared = prepare([*words, *overrides])
    try:
        module = parser.instantiate_classes(parser.parse_args(list(prepared.words))).model
    except ArgumentError as error:
        raise RecipeError(sentence(str(error), prepared.place_of, ["model"])) from error
    if not isinstance(module, PolicyModule):
        raise ValueError(f"model is a {type(module).__name__}, which trains nothing that could be exported")
    return module


def _find_start(policy: Policy, checkpoint: Path) -> None:
    """Look for a relative ``policy.path`` above the checkpoint as well: the run may have been started elsewhere."""
    if not os.path.isabs(policy.path) and not os.path.exists(policy.path):
        for folder in checkpoint.absolute().parents:
            if (folder / policy.path).is_dir():
                policy.path = str(folder / policy.path)
                return


def load_weights(module: PolicyModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Load what a checkpoint has trained, on the CPU; the base is not quantised, and there is no reference.

    Raises:
        ValueError: the checkpoint lacks what the recipe trains, or has more.
    """
    policy, was_quantized = module.policy, module.policy.quantization is not None
    policy.quantization, policy.prefix, policy.prefix_attention = None, "duplicate", "auto"
    module.prepare_reference = lambda: None  # type: ignore[method-assign]
    module.configure_model()
    base = checkpoint.get("base")
    if base is not None and not was_quantized and base != base_fingerprint(policy.network):
        raise ValueError(
            f"policy.path is {policy.path}, whose weights are not those that the run of checkpoint {path} started "
            "from; name its start with --model.init_args.policy.init_args.path"
        )
    weights = {
        name: value
        for name, value in checkpoint["state_dict"].items()
        if not name.startswith("policy.reference.") and not is_reference(name)
    }
    unknown = sorted(module.load_state_dict(weights, strict=False).unexpected_keys)
    missing = sorted(set(module.trained_names()) - weights.keys())
    if missing or unknown:
        what = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which the recipe does not know"
        raise ValueError(f"checkpoint {path} does not belong to this recipe: {what}; name its recipe with --config")


def _export_folder(ckpt: str, folder: str, merge: bool) -> str:
    """A whole model from a PEFT adapter."""
    source = find_source(ckpt)
    if source.adapter is None:
        raise ValueError(f"--ckpt is {ckpt!r}, which is a whole model already")
    if not merge:
        raise ValueError(f"--ckpt is {ckpt!r}, which is an exported adapter already; --merge makes a whole model of it")
    dtype = getattr(AutoConfig.from_pretrained(source.model, revision=source.revision), "dtype", None)
    name = str(dtype or "bfloat16").removeprefix("torch.")
    Policy(ckpt, dtype=name, prefix="duplicate").export(folder)
    return f"merged {ckpt} into {source.model}, in {folder}"


def main(words: Sequence[str]) -> int:
    """The subcommand; returns the exit status."""
    parser = HelperParser(
        prog="orlaif export",
        description="Write a Hugging Face folder, or a PEFT adapter, from a checkpoint. Further arguments change the "
        "model of its recipe, such as --model.init_args.policy.init_args.path.",
    )
    parser.add_argument("--ckpt", required=True, help="a checkpoint, a run's folder (the newest), or an adapter")
    parser.add_argument("--to", required=True, help="folder to write; an earlier export there is replaced")
    parser.add_argument("--merge", action="store_true", help="with LoRA, merge the adapter into a whole model")
    parser.add_argument("--config", action="append", default=[], help="recipe, if not the one that the run has kept")
    known, rest = parser.parse_known_args(words)
    quiet_libraries()
    if StatusLine.current is not None:
        StatusLine.current.speaks = True
    print(export_checkpoint(known.ckpt, known.to, known.merge, known.config, rest))
    return 0
