"""Writing a policy for the rest of the ecosystem: a Hugging Face folder, or a PEFT adapter, with its processor."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from orlaif.distributed import sharding
from orlaif.distributed.sync import process_index
from orlaif.policy import lora as adapters
from orlaif.policy.hub import copy_processor

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy


def export_policy(policy: Policy, folder: str, merge: bool = False) -> None:
    """Write ``policy`` to ``folder``.

    A Hugging Face folder (or, with LoRA, a PEFT adapter) with the base checkpoint's processor unchanged. All processes
    must call it where the policy is sharded; process 0 writes.

    Args:
        policy: loaded, or it is loaded now.
        folder: created where it is missing.
        merge: with LoRA, write a whole model with the adapter merged into it instead: into the base as its checkpoint
            has it, in ``policy.dtype``, where training saw it quantised.
    """
    model = policy.network
    weights = sharding.full_state_dict(model) if policy.is_sharded else None
    if process_index() > 0:
        return
    options: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    if policy.lora is None:
        model.save_pretrained(folder, **options)
    elif not merge:
        model.save_pretrained(folder, selected_adapters=[adapters.POLICY], **options)
    else:
        with tempfile.TemporaryDirectory() as adapter:
            model.save_pretrained(adapter, selected_adapters=[adapters.POLICY], **options)
            adapters.merged(policy.path, adapter, policy.dtype).save_pretrained(folder)
    copy_processor(policy.path, folder)
