"""What one pass of a model takes, counted on the meta device: decoder, vision tower, LM head with its loss.

The model is built from its config, with its adapter, and nothing is loaded; every tensor that would be alive during a
pass is counted (``orlaif.cli.plan.live_bytes``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.logits import Logits
from orlaif_kernels.statistics import statistics_of
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.cli.plan.sizes import Setup, Used, bytes_of
from orlaif.losses import grpo_rank_loss
from orlaif.policy import Policy, lora
from orlaif.policy.asking import base_of
from orlaif.policy.prefix.states import differentiable_cache

#: Tokens of a chunk of the loss with a fused head.
CHUNK = 2048


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
    if key.shape[2] != query.shape[2]:  # behind a cache there is a mask, with which transformers repeats key heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return _FlashAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("orlaif_plan", _attention)
AttentionMaskInterface.register("orlaif_plan", lambda *args, **kwargs: None)


def meta_model(policy: Policy) -> Any:
    """The policy's model on the meta device, as :meth:`Policy.load` would make it, in training mode."""
    with torch.device("meta"):
        model: Any = policy.family.build(
            policy.config, dtype=getattr(torch, policy.dtype), attn_implementation="orlaif_plan"
        )
        tower: list[nn.Module] = []
        if policy.freeze_vision:
            tower = policy.family.tower(model)
            for parameter in policy.family.tower_parameters(model):
                parameter.requires_grad_(False)
        if policy.lora is not None:
            model = lora.attach(model, policy.lora, tower)
    if policy.gradient_checkpointing:
        settings = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    return model.train()


def _layers(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


class Passes:
    """Bytes of the passes of one model.

    Args:
        policy: whose config is used.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.model = meta_model(policy)
        self.base = base_of(self.model)
        self.text = policy.config.get_text_config(decoder=True)
        self.dtype = getattr(torch, policy.dtype)
        name = policy.sharding.param_dtype
        self.compute = self.dtype if name is None else getattr(torch, name)
        parts = policy.family.tower(self.base)
        self.tower = next((part for part in parts if _layers(part)), parts[0])
        # What stands behind the first trained weight on the way to the decoder carries gradients.
        self.trains_vision = any(p.requires_grad for p in self.tower.parameters())
        self._memo: dict[tuple[Any, ...], Any] = {}

    def head(self, s: Setup, positions: int, train: bool) -> int:
        """Peak of LM head and loss over so many positions; gradients of the head included."""
        vocabulary, hidden = self.text.vocab_size, self.text.hidden_size
        head = self.base.get_output_embeddings().weight
        if s.loss == "none":
            return 0
        if s.loss == "fused_head":
            chunk = min(CHUNK, positions) * vocabulary * (self.compute.itemsize + 4)
            return chunk + (4 * head.numel() if train and head.requires_grad else 0)
        states = torch.empty(1, positions, hidden, dtype=self.compute, device="meta", requires_grad=train)
        weight = torch.empty(vocabulary, hidden, dtype=self.compute, device="meta")
        weight.requires_grad_(train and head.requires_grad)
        ids = torch.empty(1, positions, dtype=torch.long, device="meta")
        mask = torch.empty(1, positions, dtype=torch.bool, device="meta")
        places = torch.zeros(1, dtype=torch.long, device="meta")
        implementation = "torch" if s.loss == "logits" else "triton"
        settings = LossSettings(temperature=s.temperature)
        with torch.set_grad_enabled(train), LiveBytes([states, weight, ids, mask, places]) as live:
            logits = nn.functional.linear(states, weight)
            logits = logits.index_fill(-1, places, -torch.inf)
            if not train:
                statistics_of(Logits(logits, None, None, implementation), ids, mask, settings)
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
                loss = statistics_of(Logits(logits, None, None, implementation), ids, mask, LossSettings()).logps.sum()
                del logits
                loss.backward()
        return live.peak

    def decoder(self, rows: int, length: int, train: bool, grown: bool = False) -> Used:
        """The decoder's pass over rows of so many tokens."""
        key = ("decoder", rows, length, train, grown)
        return self._once(key, lambda: self._decoder_pass(rows, length, train, grown))

    def _decoder_pass(self, rows: int, length: int, train: bool, grown: bool) -> Used:
        inputs, places = self._decoder_inputs(rows, length, train)
        decoder = self.base.get_decoder()

        def run() -> Any:
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
            states = decoder(inputs_embeds=inputs, position_ids=places, attention_mask=mask, use_cache=False)
            return states.last_hidden_state

        used = self._used(run, [places, inputs], decoder, train, grown)
        # Embeddings, and the same with features in the places of pixels.
        return Used(kept=used.kept + bytes_of([inputs]), peak=used.peak + bytes_of([inputs]))

    def forked(self, s: Setup, train: bool, grown: bool = False) -> Used:
        """The decoder's two passes with ``prefix: fork``: over the prompts, and over completions behind their cache."""
        key = ("forked", s.prompts, s.prompt_tokens, s.part, s.completion_tokens, train, grown)
        return self._once(key, lambda: self._forked_passes(s, train, grown))

    def _forked_passes(self, s: Setup, train: bool, grown: bool) -> Used:
        rows = s.prompts * s.part
        first = self._decoder_inputs(s.prompts, s.prompt_tokens, train)
        second = self._decoder_inputs(rows, max(s.completion_tokens - 1, 2), train)
        decoder = self.base.get_decoder()

        def run() -> Any:
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
            cache: Any = differentiable_cache(self.text)
            states: list[Tensor] = []
            for inputs, places in (first, second):
                if states:
                    cache.reorder_cache(torch.empty(rows, dtype=torch.long, device="meta"))
                out = decoder(
                    inputs_embeds=inputs,
                    position_ids=places,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                )
                states.append(out.last_hidden_state)
            ends = states[0][:, -1:].repeat_interleave(s.part, 0)
            return torch.cat([ends, states[1]], 1)

        used = self._used(run, [*first, *second], decoder, train, grown)
        embedded = bytes_of([first[0], second[0]])
        return Used(kept=used.kept + embedded, peak=used.peak + embedded)

    def _decoder_inputs(self, rows: int, length: int, train: bool) -> tuple[Tensor, Tensor]:
        """Embeddings and position ids."""
        inputs = torch.empty(rows, length, self.text.hidden_size, dtype=self.compute, device="meta")
        three = hasattr(getattr(self.base, "model", self.base), "get_rope_index")
        places = torch.empty(*((3,) if three else ()), rows, length, dtype=torch.long, device="meta")
        embeddings = self.base.get_input_embeddings().weight
        needed = self.trains_vision or self.policy.gradient_checkpointing or embeddings.requires_grad
        return inputs.requires_grad_(train and needed), places

    def vision(self, s: Setup, train: bool, grown: bool = False) -> Used:
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
        layers = _layers(self.tower)
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
        corners = isinstance(getattr(self.tower, "pos_embed", None), nn.Embedding) and "cu_seqlens" in arguments
        places = 4 * 4 * inputs.numel() if corners else 0
        if not trained:
            first = places * 2
            return Used(kept=pixels + features, peak=pixels + cast + max(first, used.peak + 2 * bytes_of([inputs])))
        gradients = bytes_of([p for p in self.tower.parameters() if p.requires_grad]) if grown else 0
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
