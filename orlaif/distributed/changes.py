"""What differs between the run that a checkpoint is of and the one that goes on: named, and refused where it matters.

What cannot change what is learnt from a given step on (paths, devices, logging, cadence, evaluation, how far the run
goes) is a note. The rest is an error, unless ``--resume_changed`` names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Keys of the command, not of what is trained, which it is not even worth a note to name.
_COMMAND = (
    *("config", "run_dir", "overwrite", "resume_changed", "ckpt_path", "weights_only", "verbose"),
    "trainer.default_root_dir",
)
#: Beginnings of keys that may differ.
_HARMLESS = (
    *_COMMAND,
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.logger", "trainer.log_every_n_steps", "trainer.callbacks", "trainer.profiler", "trainer.barebones"),
    *("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.min_steps", "trainer.min_epochs"),
    *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.enable_autolog_hparams", "trainer.fast_dev_run", "trainer.detect_anomaly", "trainer.plugins"),
    *("data.init_args.val", "data.init_args.test", "data.init_args.predict", "data.init_args.eval_batch_size"),
    *("data.init_args.decode_device", "data.init_args.decode_threads", "data.init_args.clip_cache"),
    *("data.init_args.ahead", "data.init_args.num_workers", "model.init_args.eval_max_new_tokens"),
    *("model.init_args.suite", "model.init_args.order_consistency_every_n_steps"),
)
#: Last words of keys that say where something lies, or how it is reached.
_PLACES = ("dirpath", "cache_dir", "base_url", "api_key", "concurrency", "timeout_s", "max_retries")
#: Keys that say where data and base lie, which are compared by their fingerprints.
_FINGERPRINTED = re.compile(r"data\.init_args\..*\b(path|root|video_root)$|model\.init_args\.policy\.init_args\.path$")
_MISSING = "(none)"


def is_allowed(name: str, allowed: Iterable[str]) -> bool:
    """Whether one of ``allowed`` is a part of a dotted name, in whole words: ``lr`` or ``optimizer.lr``."""
    return any(_inner(key) in _inner(name) for key in allowed)


def _inner(name: str) -> str:
    """A dotted name as users write it, without ``init_args``, between dots."""
    return ".".join(["", *(word for word in name.split(".") if word != "init_args"), ""])


def is_harmless(name: str) -> bool:
    """Whether a key of a recipe may differ when its run goes on."""
    begins = any(name == key or name.startswith(f"{key}.") for key in _HARMLESS)
    return begins or name.rpartition(".")[2] in _PLACES or _FINGERPRINTED.match(name) is not None


def check_changes(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str]) -> list[str]:
    """Compare two recipes.

    Args:
        before: dotted names and values of the recipe that a checkpoint is of.
        now: of the one that goes on.
        allowed: names that may differ.

    Returns:
        What differs and may, a line each; keys of the command itself, such as ``run_dir``, are left out.

    Raises:
        ValueError: what differs and may not, up to five names with both values.
    """
    allowed = list(allowed)
    pairs = {name: (before.get(name, _MISSING), now.get(name, _MISSING)) for name in sorted(before.keys() | now.keys())}
    said = {name: f"{name}: {old} -> {new}" for name, (old, new) in pairs.items() if old != new}
    wrong = [name for name in said if not is_harmless(name) and not is_allowed(name, allowed)]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        keys = ",".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in wrong[:5]))
        raise ValueError(
            f"the checkpoint is of another recipe: {'; '.join(said[name] for name in wrong[:5])}{more}. "
            f"Resume with the same recipe, allow the change with --resume_changed {keys}, or start anew in another "
            "--run_dir"
        )
    return [line for name, line in said.items() if name not in _COMMAND]
