"""How many processes a recipe runs as, and under which strategy."""

from __future__ import annotations

from typing import Any

from orlaif.arguments import UsageError
from orlaif.policy import Policy
from orlaif.training.base import PolicyModule


def processes_of(trainer: Any, asked: int | None) -> tuple[int, str]:
    """How many, and by whose word: ``--gpus``, or the Trainer's devices and nodes where these are numbers.

    Args:
        trainer: settings of the Trainer, not one.
        asked: ``--gpus``.
    """
    if asked is not None:
        return asked, f"--gpus {asked}"
    devices, nodes = trainer.get("devices"), int(trainer.get("num_nodes") or 1)
    each = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 0
    if each < 1:
        return 1, f"trainer.devices {devices}, which is no number (--gpus says how many)"
    return each * nodes, f"trainer.devices {devices} x trainer.num_nodes {nodes}"


def strategy_of(trainer: Any, gpus: int, policy: Policy) -> str:
    """``one``, ``ddp`` or ``fsdp2``.

    Args:
        trainer: settings of the Trainer.
        gpus: processes.
        policy: whose weights it would shard.

    Raises:
        UsageError: a strategy of which no plan is known, or one that cannot shard this policy.
    """
    setting = trainer.get("strategy") or "auto"
    name = setting if isinstance(setting, str) else type(setting).__name__
    kind = name.lower()
    if "fsdp2" in kind:
        if policy.quantization is not None:
            raise UsageError("policy.quantization cannot be sharded with FSDP2; use --trainer.strategy ddp")
        return "fsdp2"
    if kind != "auto" and not kind.startswith("ddp") and not (gpus == 1 and kind.startswith("single")):
        raise UsageError(f"trainer.strategy is {name!r}; it must be 'auto', 'ddp' or 'fsdp2', of which a plan is known")
    return "one" if gpus == 1 else "ddp"


def check_shared(sharers: int, gpus: int, said: str) -> None:
    """Raise UsageError where processes cannot share prompts in groups of ``sharers``.

    Args:
        sharers: processes to a prompt (``policy.sequence_parallel``).
        gpus: processes.
        said: where that number is from.
    """
    if gpus % sharers:
        raise UsageError(f"policy.sequence_parallel is {sharers}, and {said} is no multiple of it")


def may_share(module: PolicyModule) -> bool:
    """Whether processes could share this stage's prompts, as far as its settings say (``policy.sequence_parallel``)."""
    rollout, policy = getattr(module, "rollout", None), module.policy
    if rollout is not None and not rollout.can_be_divided:
        return False
    divides = policy.attn_implementation == "sdpa" and policy.prefix in ("auto", "shared")
    return module.can_share_prompts and divides and policy.prefix_attention in ("auto", "split")
