"""Memory of a recipe's step on each GPU: what is there all the time, and what each phase adds.

Passes through the model are counted (``orlaif.cli.plan.passes``). What cannot be run on the meta device is added up:
weights, gradients, optimizer, caches, and what sharding gathers. What is assumed: answers of full length, prompts all
alike, attention that keeps no matrix of scores, and :data:`~orlaif.cli.plan.sizes.OTHER` for CUDA's context and the
libraries' work spaces.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.cli.plan.passes import Passes
from orlaif.cli.plan.sizes import Plan, Setup, Used, bytes_of, largest
from orlaif.distributed.sharding import Sharding
from orlaif.policy import Policy
from orlaif.policy.experts import active_parameters
from orlaif.rollout import SamplingParams
from orlaif.rollout.local import choose_tokens


class Estimate:
    """Of one model: the plan for a set-up.

    Args:
        policy: whose config is used.
        optimizer: from parameters to an optimizer, as in a recipe.
        device: kind of device that it runs on.
    """

    def __init__(self, policy: Policy, optimizer: Callable[[Any], torch.optim.Optimizer], device: str = "cuda") -> None:
        self.policy, self.optimizer, self.device = policy, optimizer, device
        self.passes = Passes(policy, device)
        self.model, self.base, self.text = self.passes.model, self.passes.base, self.passes.text
        self.compute = self.passes.compute
        self.sharding: Sharding = policy.sharding
        self.state_per_byte = _optimizer_state(optimizer)

    def changed(self, **settings: Any) -> Estimate:
        """The same with other settings of the policy."""
        names = [name for name in inspect.signature(Policy.__init__).parameters if name != "self"]
        policy = Policy(**{name: getattr(self.policy, name) for name in names} | settings)
        return Estimate(policy, self.optimizer, self.device)

    def plan(self, setup: Setup) -> Plan:
        """Bytes per GPU of a step.

        Args:
            setup: its sizes.
        """
        shards = setup.gpus if setup.strategy == "fsdp2" else 1
        parameters = list(self.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        weights, grads = self._weight_bytes(), bytes_of(trained)
        offloaded = setup.strategy == "fsdp2" and self.sharding.cpu_offload
        here = 0 if offloaded else 1
        full = self.policy.lora is None
        frozen = self.compute_bytes() if setup.strategy == "fsdp2" else bytes_of(parameters)
        standing = {
            "weights": here * weights // shards,
            "reference": here * (frozen // shards if full and setup.reference else 0),
            "optimizer": int(here * grads * self.state_per_byte / shards),
            "the sampler's engine": 0 if setup.engine_sleeps else setup.engine,
            "the oracle's models, weights": setup.judges,
            "other (CUDA, libraries; assumed)": setup.host_overhead,
        }
        if setup.reference and setup.refresh and not full:
            standing["reference"] = here * grads // shards
        layer, root = self._gathered()
        gathered = {"one": (0, 0), "ddp": (0, 0), "fsdp2": (root + 2 * layer, self.compute_bytes())}[setup.strategy]
        in_pass = gathered[1] if not self.sharding.reshard_after_forward else gathered[0]

        phases: dict[str, dict[str, int]] = {}
        # Of the batches before, where the step accumulates several.
        earlier = here * grads // shards if setup.accumulate > 1 and setup.num_updates == 1 else 0
        if setup.rollout:
            awake = {"the sampler's engine": setup.engine} if setup.engine_sleeps else {}
            sampling = awake if setup.engine else self._rollout(setup)
            phases["rollout"] = {"gathered weights": gathered[1], "gradients": earlier, **sampling}
        if setup.reference or setup.num_updates > 1:
            phases["reference"] = {"gathered weights": in_pass, "gradients": earlier, **self._forward_only(setup)}
        buckets = grads if setup.strategy == "ddp" else 0  # the reducer's
        parts = self._policy(setup)
        if setup.strategy == "fsdp2":  # shards; and of the root and a layer, whole, before they are reduced
            parts["gradients"] = here * grads // shards + min(grads, self._unsharded_gradients())
        phases["policy"] = {"gathered weights": in_pass, **parts, "buckets": buckets}
        phases["update"] = {
            "gradients": here * grads // shards,
            "buckets": buckets,
            "optimizer, temporary": here * grads // shards,
            "pixels and features": self.passes.held(setup),
        }
        return Plan(
            setup=setup,
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in trained),
            active=self._active(),
            standing=standing,
            phases=phases,
        )

    def _active(self) -> int | str | None:
        try:
            return active_parameters(self.model, self.text)
        except ValueError as error:
            return f"not known: {error}"

    @property
    def shares_cache(self) -> bool:
        """Whether decoding reads a prompt's keys and values once for its group, as far as the config tells."""
        return self.passes.layout == "shared" and self.passes.full_attention

    # ----------------------------------------------------------- added up

    def _weight_bytes(self) -> int:
        """Of all weights as they are kept, quantised or not."""
        total = bytes_of([*self.model.parameters(), *self.model.buffers()])
        if (quantization := self.policy.quantization) is None:
            return total
        four = quantization.get("load_in_4bit", False)
        # A byte or half of it per weight, and a float32 per 64 of them (or, quantised twice, a byte and a little).
        scale = 4 / 64 if not quantization.get("bnb_4bit_use_double_quant") else 1 / 64 + 4 / (64 * 256)
        per_weight = 0.5 + scale if four else 1 + 4 / self.text.hidden_size
        for weight in self._quantised():
            total += int(weight.numel() * per_weight) - weight.numel() * weight.element_size()
        return total

    def _quantised(self) -> list[Tensor]:
        head = self.policy.family.head(self.model)
        return [
            module.weight
            for name, module in self.base.named_modules()
            if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
        ]

    def compute_bytes(self) -> int:
        """Of all weights when they are gathered."""
        return sum(p.numel() * self._gathered_size(p) for p in self.model.parameters())

    def _gathered_size(self, parameter: Tensor) -> int:
        return parameter.element_size() if self.sharding.param_dtype is None else self.compute.itemsize

    def _gathered(self) -> tuple[int, int]:
        """Bytes of the largest layer, and of what is in none, when gathered."""
        layers = [m for m in self.base.modules() if isinstance(m, GradientCheckpointingLayer)]
        sizes = [sum(p.numel() * self._gathered_size(p) for p in layer.parameters()) for layer in layers]
        return max(sizes), self.compute_bytes() - sum(sizes)

    def _unsharded_gradients(self) -> int:
        layers = [m for m in self.base.modules() if isinstance(m, GradientCheckpointingLayer)]
        inside = {id(p) for layer in layers for p in layer.parameters()}
        root = sum(
            p.numel() * self._gathered_size(p)
            for p in self.model.parameters()
            if p.requires_grad and id(p) not in inside
        )
        reduced = 4 if self.sharding.reduce_dtype == "float32" else 2
        largest = max(sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers)
        return root + largest * (self.compute.itemsize + reduced)

    # ------------------------------------------------------------- counted

    def _rollout(self, s: Setup) -> dict[str, int]:
        """The larger of a prompt's pass and a token's step, of the prompts that this process samples."""
        shared, whole, s = self.shares_cache, s, s.sampled_by_one
        rows = s.prompts * s.group_size
        logits = torch.empty(rows, self.text.vocab_size, dtype=self.compute, device="meta")
        noise = torch.empty(rows, self.text.vocab_size, dtype=torch.float32, device="meta")
        with torch.no_grad(), LiveBytes([logits, noise]) as sampled:
            choose_tokens(logits.clone(), SamplingParams(temperature=s.temperature), noise)
        vision = self.passes.vision(s, train=False)
        if s.prompts < whole.prompts:  # which are encoded once more, beside the pixels of all
            pixels = whole.patches * whole.pixels * 4 + whole.beside_pixels
            vision = vision.plus(Used(kept=pixels, peak=pixels))
        prompts = s.prompts * self.passes.cache(s.prompt_tokens)
        decoder = self.passes.decoder(s.prompts, s.prompt_tokens, train=False)
        all_prompts = prompts * (1 if shared else s.group_size)
        return largest(
            {"activations": vision.peak},
            {"KV cache": prompts, "activations": vision.kept + decoder.peak},
            {
                "KV cache": all_prompts + rows * self.passes.cache(s.completion_tokens),
                "activations": vision.kept,
                "logits": sampled.peak + bytes_of([logits, noise]),
            },
        )

    def decoder(self, s: Setup, train: bool) -> tuple[Used, int]:
        """What a pass takes, and its positions with logits."""
        each, grown = s.prompts * s.completion_tokens, train and s.passes == 1
        if self.passes.layout == "fork":
            return self.passes.forked(s, train, grown), each * s.part
        together = 1 if self.passes.layout == "duplicate" else s.part
        run = -(-s.prompt_tokens // s.sharers)
        length = run + together * s.completion_tokens
        group = length if self.passes.layout == "shared" and s.sharers == 1 else 0
        used = self.passes.decoder(s.prompts, length, train, grown, group)
        if s.sharers == 1:
            return used, each * together
        # Of prompts that are shared: the rest of the embeddings, and in a layer the others' keys and values.
        rest = s.prompts * (s.prompt_tokens - run)
        embedded = rest * self.text.hidden_size * self.compute.itemsize
        layer = s.prompts * self.passes.cache(s.prompt_tokens - run) // self.text.num_hidden_layers
        return used.plus(Used(kept=embedded, peak=embedded + layer)), each * together

    def offloaded_activations(self, s: Setup) -> int:
        """Bytes of the host's memory that wait for the backward pass."""
        repeat = s.part if self.passes.layout == "duplicate" else 1
        vision = self.passes.vision(s, train=True, grown=s.passes == 1)
        return vision.host + repeat * self.decoder(s, train=True)[0].host

    def _forward_only(self, s: Setup) -> dict[str, int]:
        """The largest of vision tower, decoder and head."""
        vision, (decoder, positions) = self.passes.vision(s, train=False), self.decoder(s, train=False)
        kept = vision.kept + decoder.kept
        return largest(
            {"activations": vision.peak},
            {"activations": vision.kept + decoder.peak},
            {"activations": kept, "logits": self.passes.head(s, positions, train=False)},
        )

    def _policy(self, s: Setup) -> dict[str, int]:
        """The largest moment of a forward and backward pass: at the head, in the decoder, or in the vision tower."""
        repeat = s.part if self.passes.layout == "duplicate" else 1
        vision = self.passes.vision(s, train=True, grown=s.passes == 1)
        decoder, positions = self.decoder(s, train=True)
        head = self.passes.head(s, positions * repeat, train=True)
        weights = self.policy.family.head(self.model).weight
        in_head = bytes_of([weights]) if weights.requires_grad and s.loss != "none" else 0
        all_gradients = bytes_of([p for p in self.model.parameters() if p.requires_grad])
        before = all_gradients if s.passes > 1 else 0  # of earlier passes of this step
        kept = vision.kept + repeat * decoder.kept
        in_decoder = bytes_of([p for p in self.passes.decoder_module.parameters() if p.requires_grad])
        return largest(
            {"gradients": before or in_head, "activations": kept, "logits": head - (0 if before else in_head)},
            {
                "gradients": before or in_head,
                "activations": vision.kept + (repeat - 1) * decoder.kept + decoder.peak,
            },
            {"gradients": before or in_head + in_decoder, "activations": vision.peak},
        )


def _optimizer_state(optimizer: Callable[[Any], torch.optim.Optimizer]) -> float:
    """Bytes of an optimizer's state per byte of weights, by what it keeps for one small weight."""
    weight = nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    made = optimizer([weight])
    made.step()
    kept = [value for value in made.state[weight].values() if isinstance(value, Tensor) and value.ndim]
    return bytes_of(kept) / bytes_of([weight])
