"""``orlaif plan --config recipe.yaml --gpus 4 --gpu-memory 80GB``: will it fit, and what would make it fit.

Nothing is loaded. The model is built from its config on the meta device, with its adapter; one batch of the recipe's
sizes goes through decoder, vision tower, LM head and loss, forward and backward, and every tensor that would be alive
is counted (``orlaif.live_bytes``). What cannot be run there is added up: weights, gradients, optimizer, caches, and
what sharding gathers.

What is assumed is printed: answers of full length, prompts all alike, attention that keeps no matrix of scores, and
:data:`OTHER` for CUDA's context and the libraries' work spaces.
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif import adapters
from orlaif.data.datamodule import VideoDataModule
from orlaif.forward import base_of
from orlaif.live_bytes import LiveBytes
from orlaif.losses import grpo_rank_loss, token_logps
from orlaif.module import OracleRLAIF
from orlaif.oracles import EnsembleOracle, PreferenceRanker
from orlaif.oracles.local import LocalJudge
from orlaif.oracles.training import PreferenceRankerTraining
from orlaif.policy import Policy
from orlaif.policy_module import PolicyModule
from orlaif.rollout import SamplingParams, _choose
from orlaif.sharding import Sharding
from orlaif.vllm_rollout import VLLMRollout

GB = 1e9
#: Bytes per GPU that no tensor of ours has: CUDA's context, cuBLAS and NCCL work spaces.
OTHER = int(1.5 * GB)
#: Tokens of a chunk of the loss with a fused head.
_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What memory depends on, beside the model.

    Args:
        gpus: processes, one GPU each.
        strategy: ``one``, ``ddp`` or ``fsdp2``.
        prompts: P of a batch on one GPU.
        group_size: G.
        part: completions of a group in one forward and backward pass.
        prompt_tokens: S.
        completion_tokens: T, at most.
        patches: of all videos of a batch, in the vision tower.
        pixels: values of a patch.
        accumulate: batches per step.
        num_updates: passes over a rollout.
        rollout: whether completions are sampled.
        reference: whether there is a KL term.
        refresh: whether the reference is renewed, which with LoRA takes a second adapter.
        loss: ``logits`` (autograd over logits), ``inplace`` (Triton), ``fused_head``, or ``none`` (a ranker's scores).
        temperature: of sampling.
        host_overhead: bytes that are not tensors.
        engine: bytes of an engine beside the model that samples (vLLM's).
    """

    gpus: int = 1
    strategy: str = "one"
    prompts: int = 1
    group_size: int = 1
    part: int = 1
    prompt_tokens: int = 1024
    completion_tokens: int = 64
    patches: int = 0
    pixels: int = 0
    accumulate: int = 1
    num_updates: int = 1
    rollout: bool = True
    reference: bool = False
    refresh: bool = False
    loss: str = "inplace"
    temperature: float = 1.0
    host_overhead: int = OTHER
    engine: int = 0

    @property
    def passes(self) -> int:
        """Backward passes whose gradients add up in one step."""
        return -(-self.group_size // self.part) * self.accumulate

    @property
    def tokens_per_step(self) -> int:
        """Of prompts and completions, on all GPUs."""
        each = self.prompt_tokens + self.group_size * self.completion_tokens
        return self.gpus * self.accumulate * self.prompts * each


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes per GPU.

    Args:
        setup: what was planned.
        parameters: of the model, adapter included.
        trained: of these, how many are trained.
        standing: what is there all the time, by name.
        phases: what each phase of a step adds, by phase and name; only one phase is there at a time.
    """

    setup: Setup
    parameters: int
    trained: int
    standing: dict[str, int]
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def total(self) -> int:
        """Peak bytes of one GPU."""
        return sum(self.standing.values()) + sum(self.phases[self.worst].values())

    def table(self, memory: float | None = None) -> str:
        """In words and numbers."""
        s = self.setup
        lines = [
            f"parameters   {self.parameters / 1e6:,.1f} M, {self.trained / 1e6:,.1f} M trained "
            f"({100 * self.trained / self.parameters:.2f} %)",
            f"a step       {s.gpus} x {s.accumulate} x {s.prompts} prompts of {s.prompt_tokens:,} tokens, "
            f"{s.group_size} answers of up to {s.completion_tokens}: {s.tokens_per_step:,} tokens",
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


class _FlashAttention(torch.autograd.Function):
    """The tensors that an attention without a matrix of scores makes and keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _FlashAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("orlaif_plan", _attention)
AttentionMaskInterface.register("orlaif_plan", lambda *args, **kwargs: None)


def meta_model(policy: Policy) -> Any:
    """The policy's model on the meta device, as :meth:`Policy.load` would make it, in training mode."""
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            policy.config, dtype=getattr(torch, policy.dtype), attn_implementation="orlaif_plan"
        )
        tower = policy._vision_tower(model).requires_grad_(False) if policy.freeze_vision else None
        if policy.lora is not None:
            model = adapters.attach(model, policy.lora, tower)
    if policy.gradient_checkpointing:
        settings = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    return model.train()


class Estimate:
    """Of one model: the plan for a set-up.

    Args:
        policy: whose config is used.
        optimizer: from parameters to an optimizer, as in a recipe.
    """

    def __init__(self, policy: Policy, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.policy, self.optimizer = policy, optimizer
        self._memo: dict[tuple[Any, ...], Any] = {}
        self.model = meta_model(policy)
        self.base = base_of(self.model)
        self.text = policy.config.get_text_config(decoder=True)
        self.sharding: Sharding = policy.sharding
        self.dtype = getattr(torch, policy.dtype)
        if (name := self.sharding.param_dtype) is not None:
            self.compute = getattr(torch, name)
        else:
            self.compute = self.dtype
        self.state_per_byte = _optimizer_state(optimizer)
        self.vision = policy._vision_tower(self.base)
        # What stands behind the first trained weight on the way to the decoder carries gradients.
        self.trains_vision = any(p.requires_grad for p in self.vision.parameters())

    def changed(self, **settings: Any) -> Estimate:
        """The same with other settings of the policy."""
        names = [name for name in inspect.signature(Policy.__init__).parameters if name != "self"]
        return Estimate(Policy(**{name: getattr(self.policy, name) for name in names} | settings), self.optimizer)

    def plan(self, setup: Setup) -> Plan:
        """Bytes per GPU of a step.

        Args:
            setup: its sizes.
        """
        if setup.strategy == "fsdp2" and self.policy.quantization is not None:
            raise ValueError("policy.quantization cannot be sharded with FSDP2; plan with --strategy ddp")
        shards = setup.gpus if setup.strategy == "fsdp2" else 1
        parameters = list(self.model.parameters())
        trained = [p for p in parameters if p.requires_grad]
        weights, grads = self._weight_bytes(), _bytes(trained)
        offloaded = setup.strategy == "fsdp2" and self.sharding.cpu_offload
        here = 0 if offloaded else 1
        full = self.policy.lora is None
        standing = {
            "weights": here * weights // shards,
            "reference": here * (_bytes(parameters) // shards if full and setup.reference else 0),
            "optimizer": int(here * grads * self.state_per_byte / shards),
            "the sampler's engine": setup.engine,
            "other (CUDA, libraries; assumed)": setup.host_overhead,
        }
        if setup.reference and setup.refresh and not full:
            standing["reference"] = here * grads // shards
        layer, root = self._gathered()
        gathered = {"one": (0, 0), "ddp": (0, 0), "fsdp2": (root + 2 * layer, self._compute_bytes())}[setup.strategy]
        in_pass = gathered[1] if not self.sharding.reshard_after_forward else gathered[0]

        phases: dict[str, dict[str, int]] = {}
        if setup.rollout:
            sampling = {} if setup.engine else self._rollout(setup)
            phases["rollout"] = {"gathered weights": gathered[1], **sampling}
        if setup.reference or setup.num_updates > 1:
            phases["reference"] = {"gathered weights": in_pass, **self._forward_only(setup)}
        buckets = grads if setup.strategy == "ddp" else 0  # the reducer's
        parts = self._policy(setup)
        if setup.strategy == "fsdp2":  # shards; and of the root and a layer, whole, before they are reduced
            parts["gradients"] = here * grads // shards + min(grads, self._unsharded_gradients())
        phases["policy"] = {"gathered weights": in_pass, **parts, "buckets": buckets}
        phases["update"] = {
            "gradients": here * grads // shards,
            "buckets": buckets,
            "optimizer, temporary": here * grads // shards,
        }
        return Plan(
            setup=setup,
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in trained),
            standing=standing,
            phases=phases,
        )

    # ----------------------------------------------------------- added up

    def _weight_bytes(self) -> int:
        """Of all weights as they are kept, quantised or not."""
        total = _bytes([*self.model.parameters(), *self.model.buffers()])
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
        head = self.base.get_output_embeddings()
        return [
            module.weight
            for name, module in self.base.named_modules()
            if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
        ]

    def _compute_bytes(self) -> int:
        """Of all weights when they are gathered."""
        return sum(p.numel() * self._gathered_size(p) for p in self.model.parameters())

    def _gathered_size(self, parameter: Tensor) -> int:
        return parameter.element_size() if self.sharding.param_dtype is None else self.compute.itemsize

    def _gathered(self) -> tuple[int, int]:
        """Bytes of the largest layer, and of what is in none, when gathered."""
        layers = [m for m in self.base.modules() if isinstance(m, GradientCheckpointingLayer)]
        sizes = [sum(p.numel() * self._gathered_size(p) for p in layer.parameters()) for layer in layers]
        return max(sizes), self._compute_bytes() - sum(sizes)

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

    def _cache_bytes(self, tokens: int) -> int:
        """Keys and values of so many tokens in all layers."""
        heads = getattr(self.text, "num_key_value_heads", None) or self.text.num_attention_heads
        size = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.text.num_attention_heads
        return tokens * self.text.num_hidden_layers * 2 * heads * size * self.compute.itemsize

    # ------------------------------------------------------------- counted

    def _rollout(self, s: Setup) -> dict[str, int]:
        """The larger of a prompt's pass and a token's step."""
        shared = self.policy.prefix != "duplicate"
        rows = s.prompts * s.group_size
        logits = torch.empty(rows, self.text.vocab_size, dtype=self.compute, device="meta")
        noise = torch.empty(rows, self.text.vocab_size, dtype=torch.float32, device="meta")
        with torch.no_grad(), LiveBytes([logits, noise]) as sampled:
            _choose(logits.clone(), SamplingParams(temperature=s.temperature), noise)
        vision = self._vision(s, train=False)
        prompts = self._cache_bytes(s.prompts * s.prompt_tokens)
        decoder = self._decoder(s.prompts, s.prompt_tokens, train=False)
        all_prompts = prompts * (1 if shared else s.group_size)
        return _largest(
            {"activations": vision.peak},
            {"KV cache": prompts, "activations": vision.kept + decoder.peak},
            {
                "KV cache": all_prompts + self._cache_bytes(rows * s.completion_tokens),
                "activations": vision.kept,
                "logits": sampled.peak + _bytes([logits, noise]),
            },
        )

    def _rows(self, s: Setup) -> tuple[int, int, int]:
        """Rows, tokens in each, and positions with logits, of one forward pass."""
        if self.policy.prefix == "duplicate":
            return s.prompts, s.prompt_tokens + s.completion_tokens, s.prompts * s.completion_tokens
        return s.prompts, s.prompt_tokens + s.part * s.completion_tokens, s.prompts * s.part * s.completion_tokens

    def _forward_only(self, s: Setup) -> dict[str, int]:
        """The largest of vision tower, decoder and head."""
        rows, length, positions = self._rows(s)
        vision, decoder = self._vision(s, train=False), self._decoder(rows, length, train=False)
        kept = vision.kept + decoder.kept
        return _largest(
            {"activations": vision.peak},
            {"activations": vision.kept + decoder.peak},
            {"activations": kept, "logits": self._head(s, positions, train=False)},
        )

    def _policy(self, s: Setup) -> dict[str, int]:
        """The largest moment of a forward and backward pass: at the head, in the decoder, or in the vision tower."""
        rows, length, positions = self._rows(s)
        repeat = 1 if self.policy.prefix != "duplicate" else s.part
        vision = self._vision(s, train=True, grown=s.passes == 1)
        decoder = self._decoder(rows, length, train=True, grown=s.passes == 1)
        head = self._head(s, positions * repeat, train=True)
        weights = self.base.get_output_embeddings().weight
        in_head = _bytes([weights]) if weights.requires_grad and s.loss != "none" else 0
        all_gradients = _bytes([p for p in self.model.parameters() if p.requires_grad])
        before = all_gradients if s.passes > 1 else 0  # of earlier passes of this step
        kept = vision.kept + repeat * decoder.kept
        in_decoder = _bytes([p for p in self.base.get_decoder().parameters() if p.requires_grad])
        return _largest(
            {"gradients": before or in_head, "activations": kept, "logits": head - (0 if before else in_head)},
            {
                "gradients": before or in_head,
                "activations": vision.kept + (repeat - 1) * decoder.kept + decoder.peak,
            },
            {"gradients": before or in_head + in_decoder, "activations": vision.peak},
        )

    def _head(self, s: Setup, positions: int, train: bool) -> int:
        """Peak of LM head and loss over so many positions; gradients of the head included."""
        vocabulary, hidden = self.text.vocab_size, self.text.hidden_size
        head = self.base.get_output_embeddings().weight
        if s.loss == "none":
            return 0
        if s.loss == "fused_head":
            chunk = min(_CHUNK, positions) * vocabulary * (self.compute.itemsize + 4)
            return chunk + (4 * head.numel() if train and head.requires_grad else 0)
        states = torch.empty(1, positions, hidden, dtype=self.compute, device="meta", requires_grad=train)
        weight = torch.empty(vocabulary, hidden, dtype=self.compute, device="meta")
        weight.requires_grad_(train and head.requires_grad)
        ids = torch.empty(1, positions, dtype=torch.long, device="meta")
        mask = torch.empty(1, positions, dtype=torch.bool, device="meta")
        places = torch.zeros(1, dtype=torch.long, device="meta")
        with torch.set_grad_enabled(train), LiveBytes([states, weight, ids, mask, places]) as live:
            logits = nn.functional.linear(states, weight)
            logits = logits.index_fill(-1, places, -torch.inf)
            if not train:
                token_logps(logits, ids, mask=mask, temperature=s.temperature)
            elif s.loss == "inplace":  # the gradient takes the place of the logits
                logits.backward(logits.detach())
            elif s.rollout:
                loss, _ = grpo_rank_loss(
                    logits,
                    ids,
                    advantages=torch.empty(1, dtype=torch.float32, device="meta"),
                    mask=mask,
                    ref_logps=torch.empty(1, positions, device="meta") if s.reference else None,
                    temperature=s.temperature,
                    normalizer=1.0,
                    implementation="torch",
                )
                del logits
                loss.backward()
            else:
                loss = token_logps(logits, ids, mask=mask).sum()
                del logits
                loss.backward()
        return live.peak

    def _decoder(self, rows: int, length: int, train: bool, grown: bool = False) -> Used:
        """The decoder's pass over rows of so many tokens."""
        key = ("decoder", rows, length, train, grown)
        return self._once(key, lambda: self._decoder_pass(rows, length, train, grown))

    def _decoder_pass(self, rows: int, length: int, train: bool, grown: bool) -> Used:
        hidden = self.text.hidden_size
        inputs = torch.empty(rows, length, hidden, dtype=self.compute, device="meta")
        three = hasattr(getattr(self.base, "model", self.base), "get_rope_index")
        places = torch.empty(*((3,) if three else ()), rows, length, dtype=torch.long, device="meta")
        embeddings = self.base.get_input_embeddings().weight
        needed = self.trains_vision or self.policy.gradient_checkpointing or embeddings.requires_grad
        inputs.requires_grad_(train and needed)
        decoder = self.base.get_decoder()

        def run() -> Any:
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
            states = decoder(inputs_embeds=inputs, position_ids=places, attention_mask=mask, use_cache=False)
            return states.last_hidden_state

        used = self._used(run, [places, inputs], decoder, train, grown)
        # Embeddings, and the same with features in the places of pixels.
        return Used(kept=used.kept + _bytes([inputs]), peak=used.peak + _bytes([inputs]))

    def _vision(self, s: Setup, train: bool, grown: bool = False) -> Used:
        """The vision tower's pass: one layer after the other, all kept where it is trained."""
        if not s.patches:
            return Used(kept=0, peak=0)
        key = ("vision", s.patches, s.pixels, s.prompts * s.prompt_tokens, train, grown)
        return self._once(key, lambda: self._vision_pass(s, train, grown))

    def _vision_pass(self, s: Setup, train: bool, grown: bool) -> Used:
        # The processor's pixels, and those in the model's dtype; features.
        pixels = s.patches * s.pixels * 4
        cast = s.patches * s.pixels * self.compute.itemsize if self.compute != torch.float32 else 0
        features = s.prompts * s.prompt_tokens * self.text.hidden_size * self.compute.itemsize
        layers = [m for m in self.vision.modules() if isinstance(m, GradientCheckpointingLayer)]
        layer = layers[0]
        arguments, inputs = self._vision_inputs(layer, s.patches)
        trained = train and self.trains_vision
        inputs.requires_grad_(trained)

        def run() -> Any:
            out = layer(inputs, **arguments)
            return out[0] if isinstance(out, tuple) else out

        values = [t for v in arguments.values() for t in (v if isinstance(v, tuple) else (v,))]
        known = [t for t in [inputs, *values] if isinstance(t, Tensor)]
        used = self._used(run, known, layer, trained, grown=False)
        # Position embeddings that are interpolated between four of a grid, in float32.
        corners = isinstance(getattr(self.vision, "pos_embed", None), nn.Embedding) and "cu_seqlens" in arguments
        places = 4 * 4 * inputs.numel() if corners else 0
        if not trained:
            first = places * 2
            return Used(kept=pixels + features, peak=pixels + cast + max(first, used.peak + 2 * _bytes([inputs])))
        gradients = _bytes([p for p in self.vision.parameters() if p.requires_grad]) if grown else 0
        kept = pixels + cast + places + features + used.kept * len(layers)
        return Used(kept=kept, peak=kept + used.peak - used.kept + gradients)

    def _vision_inputs(self, layer: nn.Module, patches: int) -> tuple[dict[str, Any], Tensor]:
        config = self.policy.config.vision_config
        hidden = next(p for name, p in layer.named_parameters() if "norm1.weight" in name).shape[0]
        if "cu_seqlens" in inspect.signature(layer.forward).parameters:  # the Qwen family: all patches in a row
            heads = getattr(config, "num_heads", None) or config.num_attention_heads
            turn = torch.empty(patches, hidden // heads, dtype=self.compute, device="meta")
            ends = torch.tensor([0, patches], dtype=torch.int32)
            states = torch.empty(patches, hidden, dtype=self.compute, device="meta")
            return {"cu_seqlens": ends, "position_embeddings": (turn, turn)}, states
        each = (config.image_size // config.patch_size) ** 2
        shape = (max(1, patches // each), each, hidden)
        return {"attention_mask": None}, torch.empty(shape, dtype=self.compute, device="meta")

    def _once(self, key: tuple[Any, ...], work: Callable[[], Any]) -> Any:
        """``work()``, done once for a key: one set-up after the other asks for the same passes."""
        if key not in self._memo:
            self._memo[key] = work()
        return self._memo[key]

    def _used(
        self, run: Callable[[], Any], known: Sequence[Tensor], module: nn.Module, train: bool, grown: bool
    ) -> Used:
        """What a pass takes; gradients of its weights count as they grow, or not at all."""
        weights = list(module.parameters())
        kept_data = {id(p): p.data for p in weights}
        for p in weights:
            if self.compute != self.dtype and p.is_floating_point():
                p.data = p.data.to(self.compute)
            p.grad = torch.empty_like(p) if train and p.requires_grad and not grown else None
        gradients = [p.grad for p in weights if p.grad is not None]
        try:
            with torch.set_grad_enabled(train), LiveBytes([*weights, *module.buffers(), *known, *gradients]) as live:
                out = run()
                kept = live.now
                if train and out.requires_grad:
                    out.backward(torch.empty_like(out))
        finally:
            for p in weights:
                p.grad, p.data = None, kept_data[id(p)]
        return Used(kept=kept, peak=live.peak)


@dataclass(frozen=True, kw_only=True)
class Used:
    """Bytes of a pass: what is kept between forward and backward, and the most at any time."""

    kept: int
    peak: int


def _largest(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda moment: sum(moment.values()))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _optimizer_state(optimizer: Callable[[Any], torch.optim.Optimizer]) -> float:
    """Bytes of an optimizer's state per byte of weights, by what it keeps for one small weight."""
    weight = nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    made = optimizer([weight])
    made.step()
    kept = [value for value in made.state[weight].values() if isinstance(value, Tensor) and value.ndim]
    return _bytes(kept) / _bytes([weight])


# ------------------------------------------------------------------- from a recipe


def video_tokens(
    policy: Policy, data: VideoDataModule, height: int, width: int, seconds: float
) -> tuple[int, int, int]:
    """What a clip becomes: tokens of the prompt, patches, and values of a patch.

    Raises:
        ValueError: a family whose arithmetic is not known.
    """
    config = policy.config
    vision = getattr(config, "vision_config", None)
    frames = len(data.sampling.times(0.0, seconds))
    if data.budget is not None:
        height, width = data.budget.size(height, width, frames)
    if vision is None or not hasattr(vision, "spatial_merge_size"):
        raise ValueError(
            f"--prompt-tokens is missing: how many tokens a clip has is known for the Qwen family, and this is "
            f"{config.model_type}"
        )
    patch, merge, time = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    grid = [max(1, round(side / (patch * merge))) * merge for side in (height, width)]
    patches = -(-frames // time) * grid[0] * grid[1]
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    return patches // merge**2, patches, channels * time * patch**2


def setup_of(
    module: PolicyModule,
    data: VideoDataModule,
    trainer: Any,
    gpus: int,
    tokens: tuple[int, int, int],
    text_tokens: int,
    answer_tokens: int,
) -> Setup:
    """The sizes of a recipe's step.

    Args:
        module: the training stage.
        data: its data.
        trainer: settings of the Trainer, not one.
        gpus: processes.
        tokens: as :func:`video_tokens` has them.
        text_tokens: of a question and the chat template.
        answer_tokens: of an answer that is read from data, not sampled.
    """
    named = trainer.get("strategy")
    name = named if isinstance(named, str) else type(named).__name__
    strategy = "fsdp2" if "fsdp2" in name.lower() else "one" if gpus == 1 else "ddp"
    video, patches, pixels = tokens
    common: dict[str, Any] = {
        "gpus": gpus,
        "strategy": strategy,
        "prompts": data.batch_size,
        "prompt_tokens": video + text_tokens,
        "patches": patches * data.batch_size,
        "pixels": pixels,
        "accumulate": int(trainer.get("accumulate_grad_batches") or 1),
    }
    if isinstance(module, OracleRLAIF):
        group = module.rollout.group_size
        loss = "fused_head" if module.loss.fused_head else "logits"
        if loss == "logits" and module.loss.implementation != "torch":
            loss = "inplace"
        return Setup(
            **common,
            group_size=group,
            part=min(group, module.microbatch or group),
            completion_tokens=module.rollout.sampling.max_new_tokens,
            num_updates=module.num_updates,
            reference=bool(module.loss.kl_coef),
            refresh=module.reference.refresh == "epoch",
            loss=loss,
            temperature=module.rollout.sampling.temperature,
        )
    ranker = isinstance(module, PreferenceRankerTraining)
    group = 2 if ranker else 1
    loss = "none" if ranker else "logits"
    common["completion_tokens"] = answer_tokens
    return Setup(**common, group_size=group, part=group, rollout=False, loss=loss)


Remedy = tuple[str, Estimate, Setup]


def _fused_head(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.loss in ("inplace", "logits") and setup.rollout:
        return "model.loss.fused_head: true", estimate, replace(setup, loss="fused_head")
    return None


def _recomputed(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if estimate.policy.gradient_checkpointing:
        return None
    return "policy.gradient_checkpointing: true", estimate.changed(gradient_checkpointing=True), setup


def _smaller_parts(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.part == 1 or not setup.rollout:
        return None
    part = setup.part
    while part > 1 and estimate.plan(setup).total > memory:
        part = -(-part // 2)
        setup = replace(setup, part=part)
    return f"model.microbatch: {part}", estimate, setup


def _smaller_batches(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.prompts == 1:
        return None
    step, patches = setup.prompts * setup.accumulate, setup.patches // setup.prompts
    while setup.prompts > 1 and estimate.plan(setup).total > memory:
        fewer = setup.prompts // 2
        setup = replace(setup, prompts=fewer, patches=patches * fewer, accumulate=-(-step // fewer))
    label = f"data.batch_size: {setup.prompts} with trainer.accumulate_grad_batches: {setup.accumulate}, the same step"
    return label, estimate, setup


def _sharded(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.strategy == "fsdp2" or setup.gpus == 1 or estimate.policy.quantization is not None:
        return None
    return "trainer.strategy: fsdp2", estimate, replace(setup, strategy="fsdp2")


def _offloaded(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.strategy != "fsdp2" or estimate.sharding.cpu_offload:
        return None
    changed = estimate.changed(sharding=replace(estimate.sharding, cpu_offload=True))
    return "policy.sharding.cpu_offload: true", changed, setup


def _with_lora(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if estimate.policy.lora is not None:
        return None
    lora = {"r": 16, "target_modules": "all-linear"}
    return "policy.lora: {r: 16, target_modules: all-linear}", estimate.changed(lora=lora), setup


def _quantised(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if estimate.policy.quantization is not None:
        return None
    changed = estimate.changed(
        lora=estimate.policy.lora or {"r": 16, "target_modules": "all-linear"},
        dtype="bfloat16",
        quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
        sharding=Sharding(),
    )
    label = "policy.quantization: {load_in_4bit: true, ...} under policy.lora, dtype: bfloat16, trainer.strategy: ddp"
    return label, changed, replace(setup, strategy="ddp" if setup.gpus > 1 else "one")


_REMEDIES = (
    _fused_head,
    _recomputed,
    _smaller_parts,
    _smaller_batches,
    _sharded,
    _offloaded,
    _with_lora,
    _quantised,
)


def advice(estimate: Estimate, setup: Setup, memory: float) -> list[str]:
    """What would make it fit: settings that take less, each on top of those before, until it does.

    Args:
        estimate: of the model.
        setup: that does not fit.
        memory: bytes of a GPU.
    """
    said: list[str] = []
    total, before = estimate.plan(setup).total, math.inf
    while total < before:  # what did not help may do so after something else has
        before = total
        for remedy in _REMEDIES:
            if (found := remedy(estimate, setup, memory)) is None:
                continue
            label, changed, smaller = found
            if (needed := changed.plan(smaller).total) >= total:
                continue
            estimate, setup, total = changed, smaller, needed
            said.append(f"{label}: {total / GB:.1f} GB")
            if total <= memory:
                return said
    said.append("and that is not enough: fewer or smaller frames (data.sampling, data.budget), or a smaller model")
    return said


def not_counted(oracle: Any) -> list[str]:
    """Oracles with a model of their own, which may run on the same GPUs."""
    if isinstance(oracle, EnsembleOracle):
        return [name for member in oracle.oracles for name in not_counted(member)]
    own = isinstance(oracle, PreferenceRanker) or (isinstance(oracle, LocalJudge) and oracle.model is not None)
    return [type(oracle).__name__] if own else []


def size_in_bytes(text: str) -> float:
    """``80GB``, ``40 GiB`` or a number of GB; raises ValueError for anything else."""
    found = re.fullmatch(r"\s*([\d.]+)\s*(GiB|GB|G)?\s*", text, re.IGNORECASE)
    if found is None or not math.isfinite(float(found[1])) or float(found[1]) <= 0:
        raise ValueError(f"--gpu-memory is {text!r}; it must be a size such as 80GB or 40GiB")
    return float(found[1]) * (2**30 if (found[2] or "").lower() == "gib" else GB)


def main(arguments: Sequence[str]) -> int:
    """The subcommand; 0 where it fits, else 1."""
    from orlaif.cli import read_recipe

    parser = argparse.ArgumentParser(
        prog="orlaif plan",
        description="Memory of a recipe's step on each GPU, from the model's config alone, and what would make it fit. "
        "Further arguments are those of the recipe.",
    )
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu-memory", default="80GB", help="of each, such as 80GB or 40GiB")
    parser.add_argument("--video", default="360x640", help="height x width of a typical video, before data.budget")
    parser.add_argument("--video-seconds", type=float, default=30.0, help="its length, for FpsSampling")
    parser.add_argument(
        "--prompt-tokens", type=int, help="tokens of the video, where they cannot be told by the config"
    )
    parser.add_argument("--text-tokens", type=int, default=64, help="tokens of a question with the chat template")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of an answer that is read from data")
    known, rest = parser.parse_known_args(arguments)
    memory = size_in_bytes(known.gpu_memory)
    if known.gpus < 1:
        raise ValueError(f"--gpus is {known.gpus}; it must be 1 or more")
    if not (sides := re.fullmatch(r"(\d+)x(\d+)", known.video)):
        raise ValueError(f"--video is {known.video!r}; it must be height x width, such as 360x640")
    recipe = read_recipe(rest)
    module, data = recipe.model, recipe.datamodule
    if not isinstance(module, PolicyModule) or not isinstance(data, VideoDataModule):
        raise ValueError("plan knows the training stages of orlaif, with orlaif.VideoDataModule")
    if known.prompt_tokens is not None:
        tokens = known.prompt_tokens, 0, 0
    else:
        tokens = video_tokens(module.policy, data, int(sides[1]), int(sides[2]), known.video_seconds)
    setup = setup_of(module, data, recipe.trainer_settings, known.gpus, tokens, known.text_tokens, known.answer_tokens)
    if isinstance(module, OracleRLAIF) and isinstance(module.rollout, VLLMRollout):
        setup = replace(setup, engine=int(module.rollout.gpu_memory_utilization * memory))
    estimate = Estimate(module.policy, module.optimizer)
    plan = estimate.plan(setup)
    print(plan.table(memory))
    if isinstance(module, OracleRLAIF) and (names := not_counted(module.oracle)):
        print(f"not counted: the model of {', '.join(names)}, unless it runs elsewhere")
    if plan.total <= memory:
        return 0
    print("\nwhat would change it, each on top of those above:")
    for line in advice(estimate, setup, memory):
        print(f"  {line}")
    return 1
