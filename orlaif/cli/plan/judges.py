"""The weights of models that the oracle holds beside the policy's, by where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orlaif.cli.plan.sizes import GB
from orlaif.oracles.held import HeldModel


@dataclass(frozen=True, kw_only=True)
class Judges:
    """What an oracle's models take.

    Args:
        gpu: bytes of weights on the GPU of each process.
        host: bytes of weights that run on the CPU, in each process.
        largest: bytes of the largest of those on the GPU, which is loaded by way of the host's memory.
        notes: what is not counted, a sentence each.
    """

    gpu: int = 0
    host: int = 0
    largest: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, models: Sequence[HeldModel]) -> Judges:
        """By the device that each is given; CUDA without a number, or no device, is the process's own GPU."""
        on_gpu: list[int] = []
        host, notes = 0, list[str]()
        for model in models:
            try:
                size = model.weight_bytes()
            except (OSError, ValueError) as error:
                said = str(error).strip().splitlines() or [type(error).__name__]
                notes.append(f"not counted: the model of {model.oracle} at {model.path!r}: {said[0]}")
                continue
            if model.device in (None, "cuda"):
                on_gpu.append(size)
            elif model.device == "cpu":
                host += size
            else:
                notes.append(
                    f"not counted: the model of {model.oracle}, {size / GB:.2f} GB of weights for each process, "
                    f"for they go to {model.device}"
                )
        if on_gpu or host:
            notes.append("not counted: what the oracle's models add while they judge (activations, caches)")
        return cls(gpu=sum(on_gpu), host=host, largest=max(on_gpu, default=0), notes=tuple(notes))
