"""Memory of the host that each process takes, as far as it follows from the code: predicted.

What loading takes under FSDP2 was compared with four processes that load a model
(``benchmarks/results/loading.json``, ``tests/cli/test_plan_host.py``); frames and pixels in training never were.

Weights pass through it when they are read. Under FSDP2 a process reads its rows of one weight after the other
(``orlaif.distributed.deferred``), and they stay here only where they are offloaded; otherwise the model is whole on the
CPU before it goes to the GPU, and so is the reference's copy of it. Later there are frames: of the batch that the step
has, and of those that threads or worker processes prepare ahead of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.judges import Judges
from orlaif.cli.plan.sizes import GB, Setup, bytes_of
from orlaif.data.datamodule import VideoDataModule

#: Batches that PyTorch's DataLoader has each worker process prepare ahead, unless told otherwise.
_OF_A_WORKER = 2
_NOT_COUNTED = (
    "not counted: Python and its libraries in each process and data worker; rows of the data; decoders' own frames; "
    "samples kept for the log; what a checkpoint or an export gathers; weights that a sharded load reads whole "
    "(files that are not safetensors, an adapter that is merged)"
)


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """Bytes of the host's memory for each process, by name.

    Args:
        loading: while the policy is loaded.
        training: afterwards.
        processes: that one run has.
    """

    loading: dict[str, int]
    training: dict[str, int]
    processes: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(sum(self.loading.values()), sum(self.training.values()))

    def table(self) -> str:
        """As text."""
        lines = ["", "GB of the host's memory for each process, predicted, not measured"]
        for phase, parts in (("while it is loaded", self.loading), ("in training", self.training)):
            lines.append(f"{phase}")
            lines += [f"  {name:<38}{size / GB:>9.2f}" for name, size in parts.items() if size]
        lines.append(f"{'peak':<40}{self.peak / GB:>9.2f}")
        if self.processes > 1:
            lines.append(f"{f'of {self.processes} processes together':<40}{self.processes * self.peak / GB:>9.2f}")
        return "\n".join([*lines, _NOT_COUNTED])


def clip_bytes(data: VideoDataModule, height: int, width: int, seconds: float) -> int:
    """Of the frames u8[F, 3, H, W] of a typical video, as they are decoded."""
    times = data.sampling.times(0.0, seconds)
    if data.budget is not None:
        height, width = data.budget.size(height, width, len(times))
    return len(times) * 3 * height * width


def batches_under_way(data: VideoDataModule, looks_ahead: int) -> int:
    """Batches that are there at once: the step's own, those it looks ahead at, and those that are prepared.

    Args:
        data: of the recipe.
        looks_ahead: batches that the stage is handed besides its own.
    """
    prepared = _OF_A_WORKER * data.num_workers if data.num_workers else data.ahead
    return 1 + looks_ahead + prepared


def host_plan(
    estimate: Estimate, setup: Setup, data: VideoDataModule, clip: int, looks_ahead: int, judges: Judges, engine: bool
) -> HostPlan:
    """The plan for a set-up.

    Args:
        estimate: of the model.
        setup: its sizes.
        data: of the recipe.
        clip: bytes of a video's frames.
        looks_ahead: batches that the stage is handed besides its own.
        judges: the oracle's models.
        engine: whether the sampler's engine puts its weights into the host's memory while the step trains.
    """
    parameters = list(estimate.model.parameters())
    whole, largest = bytes_of([*parameters, *estimate.model.buffers()]), max(bytes_of([p]) for p in parameters)
    grads = bytes_of([p for p in parameters if p.requires_grad])
    copied = setup.reference and estimate.policy.lora is None
    sharded = setup.strategy == "fsdp2"
    offloaded = sharded and estimate.sharding.cpu_offload
    kept: dict[str, int] = {}
    if offloaded:
        kept["weights, offloaded"] = whole // setup.gpus
        kept["reference, offloaded"] = estimate.compute_bytes() // setup.gpus if copied else 0
    if sharded:
        loading = {**kept, "rows of one weight, as they are read": -(-largest // setup.gpus)}
    elif estimate.policy.quantization is not None:
        loading = {"one weight at a time, as it is read": largest}
    else:
        loading = {"weights, whole": whole, "reference, whole": bytes_of(parameters) if copied else 0}
    if offloaded:
        kept["gradients, offloaded"] = grads // setup.gpus
        kept["optimizer, offloaded"] = int(grads * estimate.state_per_byte / setup.gpus)
    if estimate.policy.activation_offloading:
        kept["activations, offloaded"] = estimate.offloaded_activations(setup)
    batches = batches_under_way(data, looks_ahead) if data.decode_device == "cpu" else 0
    training = {
        **kept,
        f"frames of {batches} batches": batches * setup.prompts * clip,
        f"pixels of {batches} batches, processed": batches * setup.patches * setup.pixels * 4,
        "the oracle's models on the CPU": judges.host,
        "an oracle's model, as it is loaded": judges.largest,
        "the engine's weights, while it sleeps": estimate.compute_bytes() if engine else 0,
    }
    return HostPlan(loading=loading, training=training, processes=setup.gpus)
