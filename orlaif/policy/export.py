"""Writing a policy for the rest of the ecosystem: a Hugging Face folder, or a PEFT adapter, with its processor.

An export is complete or not there: it is written beside its place and moved there when all of it is on the disk. What
an earlier export left there goes as a whole, so that files of two never mix; a folder that holds anything else is not
touched.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from orlaif.distributed.checkpoint_io import publish, sync_to_disk, unfinished
from orlaif.distributed.gathering import with_whole_weights
from orlaif.distributed.sync import process_index
from orlaif.policy import lora as adapters
from orlaif.policy.families import Family
from orlaif.policy.hub import ADAPTER_CONFIG, Source, copy_processor
from orlaif.policy.merging import add_adapters, check_sum, merged
from orlaif.policy.unread import written_one_by_one
from orlaif.policy.whole import complete, holds_more
from orlaif.stages import stage

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy

log = logging.getLogger(__name__)

#: In every folder that an export wrote: what it is. A folder without it is somebody else's.
MARK = "orlaif_export.json"


def check_target(folder: str, source: Source | None = None) -> None:
    """Raise ValueError for a folder that an export must not replace.

    Args:
        folder: where the export is to be.
        source: what the run starts from.
    """
    target = Path(folder).expanduser().absolute()
    if target.is_file():
        raise ValueError(f"export folder is {folder!r}: that is a file")
    if target.is_dir() and any(target.iterdir()) and not (target / MARK).exists():
        raise ValueError(
            f"export folder is {folder!r}: it holds files that no export wrote (such as "
            f"{min(path.name for path in target.iterdir())}), and would be replaced; name another folder, or move them"
        )
    for place in (source.model, source.adapter) if source is not None else ():
        if place is not None and os.path.isdir(place) and Path(place).resolve().is_relative_to(target.resolve()):
            raise ValueError(
                f"export folder is {folder!r}, where the run starts from ({place}), which would be gone; name another"
            )


def check_export(policy: Policy, folder: str, merge: bool) -> None:
    """Raise ValueError where the end of training would: for the folder, or an adapter that cannot be written as one.

    Args:
        policy: need not be loaded.
        folder: where the export is to be.
        merge: as in :func:`export_policy`.
    """
    check_target(folder, policy.source)
    if policy.model is None or policy.lora is None:
        return
    if merge:
        adapters.check_merge(policy.network)
    elif policy.folded is not None:
        check_sum(policy.folded, policy.network.peft_config[adapters.POLICY].to_dict())


@contextmanager
def published(folder: str) -> Iterator[str]:
    """A folder to write an export to; it takes the place of ``folder`` where the block ends well.

    On other processes than the first nothing is moved.

    Args:
        folder: of the finished export; an earlier export there is replaced as a whole.

    Raises:
        ValueError: ``folder`` holds something else (:func:`check_target`).
    """
    target = Path(folder).expanduser().absolute()
    part = unfinished(target)
    if process_index() > 0:
        yield str(part)
        return
    check_target(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield str(part)
        for path in (*part.rglob("*"), part):
            sync_to_disk(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    publish(target)


@stage("exporting")
def export_policy(policy: Policy, folder: str, merge: bool = False) -> None:
    """Write ``policy`` to ``folder``: complete, or not at all.

    A Hugging Face folder (or, with LoRA, a PEFT adapter) with the base checkpoint's processor unchanged. Where the run
    started from a checkpoint that holds more than the model that is trained (an Omni model's thinker), the folder is
    that whole checkpoint with the trained weights in it. All processes must call it where the policy is sharded;
    process 0 writes.

    Args:
        policy: loaded, or it is loaded now.
        folder: created where it is missing; an earlier export there is replaced.
        merge: with LoRA, write a whole model with the adapter merged into it instead: into the base as its checkpoint
            has it, in ``policy.dtype``, where training saw it quantised.

    Raises:
        ValueError: ``folder`` holds something else; what was written does not load.
    """
    check_export(policy, folder, merge)
    with published(folder) as part:
        write_policy(policy, part, merge)


def write_policy(policy: Policy, folder: str, merge: bool) -> None:
    """The files of :func:`export_policy`, as they are written; all processes must call where it is sharded."""

    def write(weights: dict[str, Tensor]) -> None:
        with written_one_by_one():
            _write(policy, folder, merge, {"state_dict": weights})

    if policy.is_sharded:
        with_whole_weights(policy.network, write)
    elif process_index() == 0:
        _write(policy, folder, merge, {})


def _write(policy: Policy, folder: str, merge: bool, options: dict[str, Any]) -> None:
    """By one process; ``options`` of ``save_pretrained``."""
    model, source = policy.network, policy.source
    if policy.lora is None:
        model.save_pretrained(folder, **options)
    elif not merge:
        _write_adapter(policy, folder, options)
    else:
        with tempfile.TemporaryDirectory() as adapter:
            _write_adapter(policy, adapter, options)
            merged(source, adapter, policy.dtype, policy.family).save_pretrained(folder)
    copy_processor(source, folder)
    whole = policy.lora is None or merge
    if whole:
        if holds_more(source):
            complete(folder, source)
        check_loads(folder, policy.family)
    about = {"kind": "model" if whole else "adapter", "base": source.model, "revision": source.revision}
    Path(folder, MARK).write_text(json.dumps({**about, "started_from": source.path}, indent=2), encoding="utf-8")


def _write_adapter(policy: Policy, folder: str, options: dict[str, Any]) -> None:
    """The trained adapter on the model of ``policy.source``, by a path that holds from anywhere."""
    source = policy.source
    policy.network.save_pretrained(folder, selected_adapters=[adapters.POLICY], **options)
    if policy.folded is not None:  # the base of training had another adapter merged into it
        add_adapters(policy.folded, folder)
    if (policy.lora or {}).get("use_dora"):
        log.warning("%s: transformers alone drops DoRA's magnitudes; load this adapter with peft.PeftModel", folder)
    path = Path(folder, ADAPTER_CONFIG)
    about = json.loads(path.read_text(encoding="utf-8"))
    revision = source.revision or getattr(policy.config, "_commit_hash", None)
    about |= {"base_model_name_or_path": source.model, "revision": None if os.path.isdir(source.model) else revision}
    path.write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")


def check_loads(folder: str, family: Family) -> None:
    """Raise ValueError where a whole model in ``folder``, loaded by ``family``, lacks weights; they are not read."""
    _, info = family.load(folder, device_map="meta", output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"the export lacks {missing[0]} and {len(missing) - 1} more weights of its model")
