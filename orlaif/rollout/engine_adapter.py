"""The policy's LoRA adapter as vLLM takes it: a folder in PEFT's format, under a new number after every update.

The engine adds it to the base itself, so that of each update only the adapter moves. A new number, and name, makes
what vLLM has cached of prompts under the last adapter not match any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from orlaif.policy import Policy, lora
from orlaif.policy.asking import base_of
from orlaif.policy.lora_settings import EXTRAS

#: Ranks that vLLM makes room for.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def check_adapter(policy: Policy) -> None:
    """Raise ValueError for an adapter that vLLM cannot add to the base of its checkpoint, before an engine is made.

    Args:
        policy: loaded.
    """
    settings = policy.lora
    if settings is None:
        raise ValueError("rollout.lora is 'adapter', and all weights are trained (policy.lora is null); use 'merged'")
    for name in ("use_dora", "lora_bias", *EXTRAS):
        if settings.get(name):
            raise _refused(f"policy.lora.{name} is given", "which vLLM's adapters do not have")
    if settings.get("bias", "none") != "none":
        raise _refused(f"policy.lora.bias is {settings['bias']!r}", "which vLLM's adapters do not have")
    if policy.quantization is not None:
        raise _refused("policy.quantization is given", "while the engine's base is the checkpoint, not quantised")
    if policy.folded is not None:
        raise _refused(f"{policy.folded} was merged into the base", "while the engine's base is the checkpoint")
    base = base_of(policy.network)
    adapted = {id(module) for name, module in base.named_modules() if hasattr(module, "lora_A")}
    for part in policy.family.tower(base):
        if any(id(module) in adapted for module in part.modules()):
            raise _refused(
                "the adapter reaches the vision tower", "where vLLM has none; or set policy.freeze_vision: true"
            )
    if any(id(module) in adapted for module in lora.embeddings(base)):
        raise _refused("policy.lora.target_modules has lm_head or the embedding", "which vLLM adapts otherwise")


def _refused(what: str, why: str) -> ValueError:
    return ValueError(f"rollout.lora is 'adapter', and {what}, {why}; use 'merged'")


def adapter_options(policy: Policy) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` for one adapter of the policy's rank.

    Raises:
        ValueError: a rank above vLLM's.
    """
    config = policy.network.peft_config[lora.POLICY]
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    room = next((size for size in _RANKS if size >= rank), None)
    if room is None:
        raise _refused(f"policy.lora.r is {rank}", f"more than vLLM's {_RANKS[-1]}")
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}


def write_adapter(policy: Policy, folder: Path) -> None:
    """The trained adapter's files.

    Args:
        policy: loaded; gathered, where it is sharded.
        folder: that is there.
    """
    end = f".{lora.POLICY}"
    weights: dict[str, Tensor] = {}
    for name, weight in policy.network.named_parameters():
        if ".lora_" in name and end in name:  # not the frozen adapter that is the reference
            weights[name.replace(end, "")] = weight.detach().cpu().contiguous()
    save_file(weights, folder / "adapter_model.safetensors")
    policy.network.peft_config[lora.POLICY].save_pretrained(str(folder))


def adapter_request(policy: Policy, folder: Path) -> Any:
    """``vllm.lora.request.LoRARequest`` of the files in ``folder``, numbered by the policy's version."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"policy-{policy.version}", policy.version + 1, str(folder))
