"""Seconds of a step, predicted from what it computes and reads: never measured, and said so.

A pass takes as long as its products of matrices at a share of the device's peak, or, where those are small, as its
operations take to be launched. A decoded token takes as long as reading the weights and the cache once, or as launching
its operations. What FSDP2 gathers, and gradients that are summed, are taken to go on beside the passes; what processes
that share prompts exchange, to be waited for. Not predicted: decoding of videos, which threads do ahead of the step; a
judge, which is another's machine.

Activations that wait on the host go there and back beside a pass, which takes at least as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.hardware import LAUNCH_S, Hardware
from orlaif.cli.plan.passes import CHUNK
from orlaif.cli.plan.sizes import Setup, Used, bytes_of
from orlaif.policy.experts import active_share, fused_experts

_NOT_COUNTED = (
    "not counted: decoding of videos, as far as the step waits for it; the oracle; processes that wait for one "
    "another; states that recurrent layers hand from process to process"
)


class Seconds:
    """Of one model's steps on one kind of device.

    Args:
        estimate: of the model.
        hardware: that it runs on.
        recorded: decoding is recorded once and replayed, so that no operation is launched by Python.
    """

    def __init__(self, estimate: Estimate, hardware: Hardware, recorded: bool = False) -> None:
        self.estimate, self.hardware, self.recorded = estimate, hardware, recorded
        self.passes = estimate.passes
        self.rate = hardware.rate(estimate.compute)

    def of_step(self, s: Setup) -> dict[str, float]:
        """Seconds of each stage of a step on each device, all accumulated batches together."""
        frozen = not self.passes.trains_vision
        found: dict[str, float] = {}
        of_all = self._pass(self.passes.vision(s, train=False))
        if s.rollout:
            found["vision"] = self._pass(self.passes.vision(s.sampled_by_one, train=False))
            if frozen and s.sharers > 1:  # features of a rollout of some prompts are not those that all go on with
                found["vision"] += of_all
            found["rollout"] = self._rollout(s.sampled_by_one)
        elif frozen:
            found["vision"] = of_all
        if s.reference:
            found["reference"] = self._all(s, train=False) + (0.0 if frozen else of_all)
        seen = 0.0 if frozen else self._pass(self.passes.vision(s, train=True, grown=True))
        found["policy"] = (self._all(s, train=True) + seen * -(-s.group_size // (s.part * s.sharers))) * s.num_updates
        found = {name: max(value, self._gathering(s, name)) * s.accumulate for name, value in found.items()}
        if s.sharers > 1:
            found["exchanges"] = self._exchanges(s) * s.accumulate
        found["update"] = self._update(s)
        return found

    def _pass(self, used: Used) -> float:
        computed = used.flops / self.rate + used.single / self.hardware.rate(torch.float32)
        moved = 2 * used.away / (self.hardware.host * self.hardware.of_bandwidth)  # beside it, there and back
        return max(computed, moved, LAUNCH_S * used.operations)

    def _all(self, s: Setup, train: bool) -> float:
        """Decoder and head over all completions of a batch."""
        parts = -(-s.group_size // (s.part * s.sharers))
        used, positions = self.estimate.decoder(s, train)
        repeat = s.part if self.passes.layout == "duplicate" else 1
        return parts * repeat * (self._pass(used) + self._head(s, positions, train))

    def _head(self, s: Setup, positions: int, train: bool) -> float:
        if s.loss == "none":
            return 0.0
        weight: Any = self.estimate.policy.family.head(self.estimate.model).weight
        products = (3 if weight.requires_grad else 2) if train else 1
        launched = 20 * -(-positions // CHUNK)
        return max(products * 2.0 * positions * weight.numel() / self.rate, LAUNCH_S * launched)

    def _rollout(self, s: Setup) -> float:
        """A prompt's pass, and a step for each token."""
        rows = s.prompts * s.group_size
        shared = self.estimate.shares_cache
        read = self.passes.decoder(s.prompts * (1 if shared else s.group_size), s.prompt_tokens, train=False)
        token = self.passes.decoder(rows, 2, train=False)
        cached = (s.prompts if shared else rows) * self.passes.cache(s.prompt_tokens)
        cached += rows * self.passes.cache(max(s.completion_tokens // 2, 2))
        bandwidth = self.hardware.memory * self.hardware.of_bandwidth
        flops = 2.0 * rows * self._weights(rows)[1]
        launched = 0.0 if self.recorded or s.engine else LAUNCH_S * token.operations
        step = max((self._weights(rows)[0] + cached) / bandwidth, flops / self.rate, launched)
        return self._pass(read) + s.completion_tokens * step

    def _weights(self, rows: int) -> tuple[float, float]:
        """Bytes of the weights that a decoded token of so many rows reads, and how many a row is multiplied by."""
        decoder, model = self.passes.decoder_module, self.estimate.model
        tables = {id(part.weight) for part in decoder.modules() if isinstance(part, nn.Embedding)}
        read = [p for p in decoder.parameters() if id(p) not in tables]
        head: Any = self.estimate.policy.family.head(model).weight
        experts = list(fused_experts(decoder).values())
        inside = {id(p) for p in experts}
        share = active_share(self.estimate.text, experts[0].shape[0]) if experts else 1.0
        others = [p for p in read if id(p) not in inside]
        touched = 1 - (1 - share) ** rows
        numbers = sum(p.numel() for p in [*others, head]) + share * sum(p.numel() for p in experts)
        return bytes_of([*others, head]) + touched * bytes_of(experts), numbers

    def _gathering(self, s: Setup, stage: str) -> float:
        """What is sent beside a stage."""
        if s.gpus == 1:
            return 0.0
        rate = self.hardware.link * self.hardware.of_bandwidth
        others = (s.gpus - 1) / s.gpus
        trained = bytes_of([p for p in self.estimate.model.parameters() if p.requires_grad])
        if s.strategy == "ddp":
            return 2 * others * trained / rate if stage == "policy" else 0.0
        whole = self.estimate.compute_bytes()
        again = 2 if stage == "policy" and self.estimate.sharding.reshard_after_forward else 1
        times = again * (-(-s.group_size // (s.part * s.sharers)) if stage == "policy" else 1)
        sent = times * whole if stage != "vision" else 0
        return others * (sent + (trained if stage == "policy" else 0)) / rate

    def _exchanges(self, s: Setup) -> float:
        """What processes that share prompts wait for: the others' keys and values, and features of their frames.

        Keys and values are sent forward, again backward, and their gradients after that, for each part of a group.
        """
        others = (s.sharers - 1) / s.sharers
        cached = s.prompts * self.passes.cache(s.prompt_tokens)
        features = s.prompts * s.prompt_tokens * self.passes.text.hidden_size * self.estimate.compute.itemsize
        parts = -(-s.group_size // (s.part * s.sharers))
        passes = (1 if s.reference else 0) + 3 * s.num_updates
        encoded = 1 + (2 * s.num_updates if self.passes.trains_vision else 0)
        sent = parts * (passes * cached + (encoded * features if s.tower_sharers > 1 else 0))
        return others * sent / (self.hardware.link * self.hardware.of_bandwidth)

    def _update(self, s: Setup) -> float:
        """Gradients, weights and the optimizer's states are read, and all but the first written."""
        trained = bytes_of([p for p in self.estimate.model.parameters() if p.requires_grad])
        shards = s.gpus if s.strategy == "fsdp2" else 1
        moved = trained * (3 + 2 * self.estimate.state_per_byte) / shards * s.num_updates
        return moved / (self.hardware.memory * self.hardware.of_bandwidth)


def told(found: dict[str, float], hardware: Hardware) -> str:
    """As text."""
    lines = ["", "seconds of a step, predicted, not measured", f"  ({hardware.said})"]
    lines += [f"  {name:<38}{value:>9.3g}" for name, value in found.items()]
    lines.append(f"{'a step':<40}{sum(found.values()):>9.3g}")
    return "\n".join([*lines, _NOT_COUNTED])
