"""What memory depends on, and what it comes to: the hand-overs of ``orlaif plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

GB = 1e9
#: Bytes per GPU that no tensor of ours has: CUDA's context, cuBLAS and NCCL work spaces.
OTHER = int(1.5 * GB)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What memory depends on, beside the model.

    Args:
        gpus: processes, one GPU each.
        strategy: ``one``, ``ddp`` or ``fsdp2``.
        prompts: P of a batch on one GPU.
        group_size: G.
        part: completions of a group in one forward and backward pass.
        sharers: processes that share each prompt (``policy.sequence_parallel``), and deal out its group.
        tower_sharers: those of them that the vision tower's frames are divided among.
        samplers: those of them that sample, each some of the prompts.
        may_share: whether processes can share prompts in this stage, by this rollout.
        prompt_tokens: S.
        completion_tokens: T, at most.
        patches: of all videos of a batch, in the vision tower.
        pixels: values of a patch.
        beside_pixels: bytes of what else a processor makes of all videos of a batch, such as masks of pixels.
        accumulate: batches per step.
        num_updates: passes over a rollout.
        rollout: whether completions are sampled.
        reference: whether there is a KL term.
        refresh: whether the reference is renewed, which with LoRA takes a second adapter.
        loss: ``logits`` (by PyTorch, a chunk at a time), ``triton``, ``inplace`` (Triton, the gradient where the logits
            were), ``fused_head``, or ``none`` (a ranker's scores).
        temperature: of sampling.
        host_overhead: bytes that are not tensors.
        answers_in_row: answers that make up one completion, in a listwise ranker's row.
        max_batches: most batches that dynamic sampling samples for a step, one after the other; 0: without it.
        engine: bytes of an engine beside the model that samples (vLLM's).
        engine_sleeps: whether it gives them back while the step trains.
        judges: bytes of the oracle's models beside the policy's.
    """

    gpus: int = 1
    strategy: str = "one"
    prompts: int = 1
    group_size: int = 1
    part: int = 1
    sharers: int = 1
    tower_sharers: int = 1
    samplers: int = 1
    may_share: bool = False
    prompt_tokens: int = 1024
    completion_tokens: int = 64
    patches: int = 0
    pixels: int = 0
    beside_pixels: int = 0
    accumulate: int = 1
    num_updates: int = 1
    rollout: bool = True
    reference: bool = False
    refresh: bool = False
    loss: str = "inplace"
    temperature: float = 1.0
    host_overhead: int = OTHER
    answers_in_row: int = 1
    max_batches: int = 0
    engine: int = 0
    engine_sleeps: bool = False
    judges: int = 0

    @property
    def sampled_by_one(self) -> Setup:
        """Of the prompts that one process samples, whose frames it sees alone: ceil(P / samplers)."""
        own = -(-self.prompts // self.samplers)
        sizes = {name: getattr(self, name) * own // self.prompts for name in ("patches", "beside_pixels")}
        return replace(self, prompts=own, tower_sharers=1, **sizes)

    @property
    def passes(self) -> int:
        """Backward passes whose gradients add up in one step."""
        return -(-self.group_size // (self.part * self.sharers)) * self.accumulate

    @property
    def tokens_per_step(self) -> int:
        """Of prompts and completions, on all GPUs."""
        return self.accumulate * self.tokens_per_batch

    @property
    def tokens_per_batch(self) -> int:
        """Of one batch of each GPU."""
        of_prompt = self.prompt_tokens + self.group_size * self.completion_tokens
        return self.gpus // self.sharers * self.prompts * of_prompt

    @property
    def answers(self) -> str:
        """Of a prompt, in words."""
        if self.answers_in_row > 1:
            return f"{self.answers_in_row} answers in a row, {self.completion_tokens} tokens together"
        return f"{self.group_size} answers of up to {self.completion_tokens}"

    @property
    def sampled(self) -> str:
        """What dynamic sampling adds to a step, in words."""
        return (
            f"sampled      for a step up to {self.max_batches} batches, {self.max_batches * self.tokens_per_batch:,} "
            "tokens, where groups tie;\n             assumed: one batch after the other, so that the peak is that of "
            "one that is kept whole"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes per GPU.

    Args:
        setup: what was planned.
        parameters: of the model, adapter included.
        trained: of these, how many are trained.
        active: those that a token goes through where there are experts, else None; or why that is not known.
        standing: what is there all the time, by name.
        phases: what each phase of a step adds, by phase and name; only one phase is there at a time.
    """

    setup: Setup
    parameters: int
    trained: int
    active: int | str | None = None
    standing: dict[str, int]
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """Name of the phase that needs the most memory."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def total(self) -> int:
        """Peak bytes of one GPU: what always stands there, and the worst phase."""
        return sum(self.standing.values()) + sum(self.phases[self.worst].values())

    def table(self, memory: float | None = None) -> str:
        """The plan as text, sizes in GB per GPU; with ``memory``, the bytes of a GPU, whether it fits."""
        s, active = self.setup, self.active
        if isinstance(active, int):
            active = f"{active / 1e6:,.1f} M per token ({100 * active / self.parameters:.2f} %)"
        lines = [
            f"parameters   {self.parameters / 1e6:,.1f} M, {self.trained / 1e6:,.1f} M trained "
            f"({100 * self.trained / self.parameters:.2f} %)",
            *([] if active is None else [f"active       {active}"]),
            f"a step       {s.gpus // s.sharers} x {s.accumulate} x {s.prompts} prompts of {s.prompt_tokens:,} tokens, "
            f"{s.answers}: {s.tokens_per_step:,} tokens",
            *([s.sampled] if s.max_batches else []),
            f"strategy     {s.strategy}, {s.gpus} GPU{'s' if s.gpus > 1 else ''}",
            "",
            "GB per GPU, always there",
            *(f"  {name:<38}{size / GB:>9.2f}" for name, size in self.standing.items() if size),
        ]
        for phase, parts in self.phases.items():
            lines.append(f"and in the {phase}{' (the peak)' if phase == self.worst else ''}")
            lines += [f"  {name:<38}{size / GB:>9.2f}" for name, size in parts.items() if size]
        lines.append(f"{'peak':<40}{self.total / GB:>9.2f}")
        if memory is not None:
            fits = "fits" if self.total <= memory else "does not fit"
            lines.append(f"{'of':<40}{memory / GB:>9.2f}   {fits}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Used:
    """Of a pass.

    Args:
        kept: bytes between forward and backward.
        peak: the most bytes at any time.
        host: bytes of the host's memory between forward and backward (``policy.activation_offloading``).
        away: what they take on the device, before they leave it.
        flops: of products in 16 bits, forward and backward together.
        single: of those in 32 bits.
        operations: kernels, forward and backward together.
    """

    kept: int
    peak: int
    host: int = 0
    away: int = 0
    flops: float = 0.0
    single: float = 0.0
    operations: int = 0

    def plus(self, other: Used, times: float = 1) -> Used:
        """This, and so many times the other."""
        return Used(
            kept=int(self.kept + times * other.kept),
            peak=int(self.peak + times * other.peak),
            host=int(self.host + times * other.host),
            away=int(self.away + times * other.away),
            flops=self.flops + times * other.flops,
            single=self.single + times * other.single,
            operations=int(self.operations + times * other.operations),
        )


def largest(*moments: dict[str, int]) -> dict[str, int]:
    """The moment of a pass, bytes by name, that takes most memory."""
    return max(moments, key=lambda moment: sum(moment.values()))


def bytes_of(tensors: Sequence[Any]) -> int:
    """Bytes of all elements of these tensors; of what is none, nothing."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
