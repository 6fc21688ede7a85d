"""Two optimizer steps on groups behind 8 prompts, in one process or sharded over two; saves weights and gradients.

python -m tests.sharded_run OUT PROCESSES MODEL DATA ATTENTION [lora]
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from orlaif.losses import GRPORankLoss
from orlaif.policy import Policy
from orlaif.rollout import SamplingParams
from tests.test_module import ByText, Scripted, data, rlaif, trainer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Saver(Callback):
    """Gradients of the first step, and the weights at the end."""

    def __init__(self, out: str) -> None:
        self.out, self.grads = out, {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.grads:
            named = pl_module.policy.network.named_parameters()
            self.grads = {name: whole(p.grad).clone() for name, p in named if p.grad is not None}

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        weights = {name: whole(p.detach()).clone() for name, p in pl_module.policy.network.named_parameters()}
        sharded = sum(isinstance(p, DTensor) for p in pl_module.policy.network.parameters())
        if trainer.is_global_zero:
            torch.save({"grads": self.grads, "weights": weights, "sharded": sharded}, self.out)


def main(out: str, processes: int, folder: str, root: str, attention: str, lora: bool) -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    module = rlaif(
        folder,
        rollout=Scripted(group_size=4, sampling=SamplingParams(max_new_tokens=4)),
        oracle=ByText(),
        loss=GRPORankLoss(kl_coef=0.05, entropy_coef=0.01),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        microbatch=3,
    )
    settings: dict[str, Any] = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}} if lora else {}
    prefix = "duplicate" if attention == "duplicate" else "shared"
    chosen = "auto" if prefix == "duplicate" else attention
    module.policy = Policy(folder, dtype="float32", prefix=prefix, prefix_attention=chosen, **settings)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if processes == 2 else "auto"
    options = {"strategy": strategy, "devices": processes, "max_steps": 2, "callbacks": [Saver(out)]}
    trainer(Path(out).parent, **options).fit(module, data(root, 8 // processes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:6], "lora" in sys.argv[6:])
