"""What one pass of a model takes, counted on the meta device: decoder, vision tower, LM head with its loss.

The model is built from its config, with its adapter, and nothing is loaded; every tensor that would be alive during a
pass is counted (``orlaif.cli.plan.live_bytes``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.logits import Logits
from orlaif_kernels.statistics import statistics_of
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from orlaif.cli.plan.attention import Reading, has_blocks
from orlaif.cli.plan.layers import extrapolated
from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.cli.plan.meta import decoder_of, eyes, meta_model, read_rows
from orlaif.cli.plan.numbers import on_meta
from orlaif.cli.plan.sizes import Setup, Used, bytes_of
from orlaif.cli.plan.tower import Tower
from orlaif.cli.plan.unsaid import unsaid_sizes
from orlaif.losses import grpo_rank_loss
from orlaif.policy import Policy, evaluating
from orlaif.policy.asking import base_of
from orlaif.policy.offloading import WINDOW
from orlaif.policy.prefix.attention import SPLIT_FROM
from orlaif.policy.prefix.choice import wanted_attentions
from orlaif.policy.prefix.prepare import structural_reason
from orlaif.policy.prefix.split import split_runs_on
from orlaif.policy.prefix.states import differentiable_cache

#: Tokens of a chunk of the loss with a fused head.
CHUNK = 2048


class Passes:
    """Bytes of the passes of one model.

    Args:
        policy: whose config is used.
        device: kind of device that it will run on, by which attention is chosen.
    """

    def __init__(self, policy: Policy, device: str = "cuda") -> None:
        self.policy, self.device = policy, torch.device(device)
        self.model, shown = meta_model(policy)
        self.base = base_of(self.model)
        self.text = policy.config.get_text_config(decoder=True)
        self.dtype = getattr(torch, policy.dtype)
        name = policy.sharding.param_dtype
        self.compute = self.dtype if name is None else getattr(torch, name)
        self.decoder_module: Any = decoder_of(self.model)
        self.blocks = has_blocks(self.base)
        # What stands behind the first trained weight on the way to the decoder carries gradients.
        self.tower = Tower(shown.seeing(eyes(policy, self.base)), self.compute, self._used, shown)
        self.trains_vision = self.tower.trained
        #: What a user should know of how it was counted, a sentence each.
        self.notes: list[str] = [] if shown.note is None else [shown.note]
        #: Layers of a run: so many stay on the device, and one is another.
        self._least = 1 + WINDOW if policy.activation_offloading else 1
        self._memo: dict[tuple[Any, ...], Any] = {}

    @property
    def full_attention(self) -> bool:
        """Whether every layer looks at all tokens before, so that decoding can share a prompt's cache."""
        return not self.blocks and set(getattr(self.text, "layer_types", None) or ()) <= {"full_attention"}

    @cached_property
    def layout(self) -> str:
        """How groups go through the model, as far as the config tells: ``shared``, ``fork`` or ``duplicate``."""
        if self.policy.prefix != "auto":
            return self.policy.prefix
        kinds = enumerate(getattr(self.text, "layer_types", None) or ())
        with_state = [i for i, kind in kinds if "attention" not in kind or "linear" in kind]
        if self.policy.prefix_attention != "auto" or structural_reason(self.text, with_state, True) is None:
            return "shared"
        return "duplicate" if self.policy.gradient_checkpointing else "fork"

    def masked(self, group_tokens: int) -> bool:
        """Whether groups of so many tokens in rows attend by a mask of all that a token sees."""
        wanted = wanted_attentions(self.policy.prefix_attention, self.policy.attn_implementation)
        heads = [getattr(self.text, name, None) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
        unequal = any(heads) and sum(heads) != getattr(self.text, "v_head_dim", sum(heads))
        split = "split" in wanted and split_runs_on(self.device, self.compute) and not unequal
        return "mask" in wanted and not (split and group_tokens >= SPLIT_FROM)

    def head(self, s: Setup, positions: int, train: bool) -> int:
        """Peak of LM head and loss over so many positions; gradients of the head included."""
        vocabulary, hidden = self.text.vocab_size, self.text.hidden_size
        head: Tensor = self.policy.family.head(self.model).weight  # type: ignore[assignment]
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

    def decoder(self, rows: int, length: int, train: bool, grown: bool = False, group: int = 0) -> Used:
        """The decoder's pass over rows of so many tokens; of groups, if ``group`` says how many tokens each has."""
        key = ("decoder", rows, length, train, grown, group)
        return self._once(key, lambda: self._decoder_pass(rows, length, train, grown, group))

    def _decoder_pass(self, rows: int, length: int, train: bool, grown: bool, group: int) -> Used:
        inputs, places = self._decoder_inputs(rows, length, train)
        decoder, masked = self.decoder_module, group > 0 and self.masked(group)

        def run() -> Any:
            rows = self._reading(groups=group > 0)
            return read_rows(decoder, inputs, places, rows, masked, use_cache=False).last_hidden_state

        used = self._by_layers(run, [places, inputs], train, grown)
        # Embeddings, and the same with features in the places of pixels.
        return used.plus(Used(kept=bytes_of([inputs]), peak=bytes_of([inputs])))

    def cache(self, length: int) -> int:
        """Bytes of what decoding keeps of a row of so many tokens: keys and values, and states of recurrent layers."""

        def fill() -> int:
            return extrapolated(self.decoder_module, lambda: self._cached(length), False, notes=self.notes).kept

        return self._once(("cache", length), fill)

    def _cached(self, length: int) -> Used:
        inputs, places = self._decoder_inputs(1, max(length, 2), train=False)
        cache: Any = DynamicCache(config=self.text)
        # Decoding is in eval mode; in training mode a layer of transformers 5.17 that recomputes would keep nothing.
        with torch.no_grad(), on_meta(), evaluating(self.decoder_module):
            rows = self._reading()
            read_rows(self.decoder_module, inputs, places, rows, past_key_values=cache, use_cache=True)
        kept = bytes_of(tree_leaves([vars(layer) for layer in cache.layers]))
        return Used(kept=kept, peak=kept)

    def forked(self, s: Setup, train: bool, grown: bool = False) -> Used:
        """The decoder's two passes with ``prefix: fork``: over the prompts, and over completions behind their cache."""
        key = ("forked", s.prompts, s.prompt_tokens, s.part, s.completion_tokens, train, grown)
        return self._once(key, lambda: self._forked_passes(s, train, grown))

    def _forked_passes(self, s: Setup, train: bool, grown: bool) -> Used:
        rows = s.prompts * s.part
        first = self._decoder_inputs(s.prompts, s.prompt_tokens, train)
        second = self._decoder_inputs(rows, max(s.completion_tokens - 1, 2), train)
        decoder = self.decoder_module

        def run() -> Any:
            cache: Any = differentiable_cache(self.text)
            states: list[Tensor] = []
            for inputs, places in (first, second):
                if states:
                    cache.reorder_cache(torch.empty(rows, dtype=torch.long, device="meta"))
                holds = self._reading()
                out = read_rows(decoder, inputs, places, holds, past_key_values=cache, use_cache=True)
                states.append(out.last_hidden_state)
            ends = states[0][:, -1:].repeat_interleave(s.part, 0)
            return torch.cat([ends, states[1]], 1)

        used = self._by_layers(run, [*first, *second], train, grown)
        embedded = bytes_of([first[0], second[0]])
        return used.plus(Used(kept=embedded, peak=embedded))

    def _reading(self, groups: bool = False) -> Reading:
        return Reading(groups=groups, blocks=self.blocks, on_cpu=self.device.type == "cpu")

    def _decoder_inputs(self, rows: int, length: int, train: bool) -> tuple[Tensor, Tensor]:
        """Embeddings and position ids."""
        inputs = torch.empty(rows, length, self.text.hidden_size, dtype=self.compute, device="meta")
        three = hasattr(getattr(self.base, "model", self.base), "get_rope_index")
        places = torch.empty(*((3,) if three else ()), rows, length, dtype=torch.long, device="meta")
        embeddings = self.base.get_input_embeddings().weight
        needed = self.trains_vision or bool(self.policy.gradient_checkpointing) or embeddings.requires_grad
        return inputs.requires_grad_(train and needed), places

    def vision(self, s: Setup, train: bool, grown: bool = False) -> Used:
        """The vision tower's pass: one layer after the other, all kept where it is trained."""
        if not s.patches:
            return Used(kept=0, peak=0)
        key = ("vision", s.patches, s.tower_sharers, s.pixels, s.prompts * s.prompt_tokens, train, grown)
        return self._once(key, lambda: self._vision_pass(s, train, grown))

    def held(self, s: Setup) -> int:
        """Bytes of what a batch leaves until the next: pixels, what the tower gave, and the features made of that."""
        if not s.patches:
            return 0
        features = s.prompts * s.prompt_tokens * self.text.hidden_size * self.compute.itemsize
        states = -(-s.patches // s.tower_sharers) * self.tower.width * self.compute.itemsize
        given = features if self.tower.pools else states
        return s.patches * s.pixels * 4 + s.beside_pixels + features + given + self.tower.further[1] * states

    def _vision_pass(self, s: Setup, train: bool, grown: bool) -> Used:
        # The processor's pixels, and those in the model's dtype; features.
        pixels = s.patches * s.pixels * 4 + s.beside_pixels
        cast = s.patches * s.pixels * self.compute.itemsize if self.compute != torch.float32 else 0
        features = s.prompts * s.prompt_tokens * self.text.hidden_size * self.compute.itemsize
        trained = train and self.trains_vision
        patches = -(-s.patches // s.tower_sharers)  # of this process, which is given the features of all
        used, number = self.tower.layers(patches, trained)
        states = patches * self.tower.width * self.compute.itemsize
        places = 4 * 4 * patches * self.tower.width if self.tower.interpolates else 0
        turns, masks = self.tower.handed(patches)  # to each layer: what heads are turned by, and what they may see
        work = replace(used.plus(used, number - 1), kept=0, peak=0)
        if not trained:
            further = [number * states for number in self.tower.further]
            peak = pixels + cast + max(places * 2, turns + masks + used.peak + 2 * states + further[0])
            return work.plus(Used(kept=pixels + features + further[1], peak=peak))
        gradients = self.tower.gradients() if grown else 0
        # What is away is all away when the decoder has run, and back of as many layers as there is room for.
        kept = pixels + cast + places + turns + features + (used.kept - used.away) * number
        back = used.away * min(number, WINDOW)
        return work.plus(Used(kept=kept, peak=kept + back + used.peak - used.kept + gradients))

    def _once(self, key: tuple[Any, ...], work: Callable[[], Any]) -> Any:
        """``work()``, done once for a key: one set-up after the other asks for the same passes."""
        if key not in self._memo:
            try:
                self._memo[key] = work()
            except Exception as error:  # whatever a model's own code raises for lack of numbers
                if unsaid := unsaid_sizes(self.policy.path, self.policy.config):
                    raise ValueError(
                        f"policy.path is {self.policy.path!r}, whose config does not say {', '.join(unsaid)}; with "
                        f"those of model type {self.policy.config.model_type!r} no pass can be counted "
                        f"({type(error).__name__}: {error})"
                    ) from error
                raise ValueError(
                    f"policy.path is a model of type {self.policy.config.model_type!r}, of which no pass can be "
                    f"counted without its weights ({type(error).__name__}: {error}); plan needs a model whose "
                    "passes run on the meta device; orlaif fit with --trainer.max_steps 2 tells what a step takes"
                ) from error
        return self._memo[key]

    def _by_layers(self, run: Callable[[], Any], known: Sequence[Tensor], train: bool, grown: bool) -> Used:
        """:meth:`_used` of the whole decoder, from runs with a few of its layers."""
        decoder = self.decoder_module
        return extrapolated(
            decoder, lambda: self._used(run, known, decoder, train, grown), train, self._least, self.notes
        )

    def _used(
        self, run: Callable[[], Any], known: Sequence[Tensor], module: nn.Module, train: bool, grown: bool = False
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
            counted = LiveBytes([*weights, *module.buffers(), *known, *gradients])
            with torch.set_grad_enabled(train), on_meta(), counted as live:
                out = run()
                kept, host, away = live.now, live.host, live.away
                if train and out.requires_grad:
                    out.backward(torch.empty_like(out))
        finally:
            for p in weights:
                p.grad, p.data = None, kept_data[id(p)]
        flops, single, operations = live.flops, live.single, live.operations
        return Used(kept=kept, peak=live.peak, host=host, away=away, flops=flops, single=single, operations=operations)
