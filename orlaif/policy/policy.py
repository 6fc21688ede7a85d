"""The policy: a Hugging Face video-language model, and log-probs of completions.

Weights are loaded on first use (or by :meth:`Policy.load`), so that a recipe can be read, checked and printed without
them. Objects that it holds do the rest: ``reference`` (frozen), ``positions`` and ``features`` (of the last batch),
``choice`` (how groups go through the model); ``orlaif.policy.export`` writes it to a folder.

The distribution is over the model's vocabulary without its image and video placeholder tokens: a sampled placeholder
would ask the model for pixels that do not exist. Sampling, log-probs and loss exclude them alike.

Shapes: P prompts, G completions, T completion tokens, V vocabulary, L = S + G * T.
"""

from __future__ import annotations

import contextlib
from typing import Any, get_args

import torch
from orlaif_kernels import linear_logps, token_statistics
from torch import Tensor, nn
from transformers import AutoConfig

from orlaif.distributed import sharding
from orlaif.distributed.sharding import Sharding
from orlaif.distributed.sync import exchange
from orlaif.policy import lora as adapters
from orlaif.policy.asking import base_of
from orlaif.policy.encoding import sub_batches
from orlaif.policy.ending import end_ids
from orlaif.policy.export import export_policy
from orlaif.policy.families import Family, family_of
from orlaif.policy.hub import Source, find_source, load_processor
from orlaif.policy.lora_start import start_from
from orlaif.policy.merging import fold
from orlaif.policy.positions import PromptPositions
from orlaif.policy.prefix.attention import PrefixAttention
from orlaif.policy.prefix.choice import Layout, Prefix, PrefixChoice, choose_prefix
from orlaif.policy.prefix.forward import duplicate_forward, shared_forward
from orlaif.policy.prefix.probe import synthetic_prompt
from orlaif.policy.reference import FrozenReference
from orlaif.policy.vision import VisionFeatures
from orlaif.types import Completions, PromptBatch

_DTYPES = ("bfloat16", "float16", "float32", "float64")


class Policy(nn.Module):
    """A video-language model to be trained.

    Args:
        path: folder of a Hugging Face checkpoint or a PEFT adapter, or a hub id of one.
        lora: arguments of ``peft.LoraConfig``; None means full fine-tuning (of an adapter's base, it merged into it).
        dtype: of the weights: ``bfloat16``, ``float16``, ``float32`` or ``float64``.
        prefix: ``shared`` = a group in one row (exact, the prompt is paid once), ``duplicate`` = the prompt again for
            each completion, ``auto`` = shared where a check on the loaded model, with its weights, gives the
            model's own log-probs, else duplicate; the log says which and why.
        attn_implementation: of transformers; a shared prefix needs ``sdpa``, or ``eager``, which has ``mask`` only.
        gradient_checkpointing: recompute activations in the backward pass.
        freeze_vision: leave all that makes features of a video as it is (tower and projector: everything outside
            decoder and LM head), and give it no adapter; features are then computed once per prompt for rollout,
            reference and policy together.
        prefix_attention: of a shared prefix: ``mask``, ``split`` or ``flex`` (``orlaif.policy.prefix.attention``), or
            ``auto`` = ``mask`` or ``split`` by the size of the batch.
        quantization: arguments of ``transformers.BitsAndBytesConfig`` for the frozen base under a LoRA adapter (QLoRA);
            needs bitsandbytes.
        sharding: how FSDP2 treats the weights, under ``--trainer.strategy fsdp2``.
        family: what this model does otherwise than others (``orlaif.policy.families``), by ``class_path``; by default
            what its model type asks for.

    Raises:
        ValueError: an unknown ``dtype``, ``prefix`` or ``prefix_attention``, or ``quantization`` without ``lora``; on
            loading, a path that holds no checkpoint, or ``prefix: shared`` for a model that gives other log-probs then.
    """

    def __init__(
        self,
        path: str,
        lora: dict[str, Any] | None = None,
        dtype: str = "bfloat16",
        prefix: Prefix = "auto",
        attn_implementation: str = "sdpa",
        gradient_checkpointing: bool = False,
        freeze_vision: bool = False,
        prefix_attention: PrefixAttention = "auto",
        quantization: dict[str, Any] | None = None,
        sharding: Sharding | None = None,
        family: Family | None = None,
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ValueError(f"policy.dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}")
        if prefix not in get_args(Prefix):
            raise ValueError(f"policy.prefix is {prefix!r}; it must be 'auto', 'shared' or 'duplicate'")
        if prefix_attention not in get_args(PrefixAttention):
            raise ValueError(
                f"policy.prefix_attention is {prefix_attention!r}; it must be 'auto', 'mask', 'split' or 'flex'"
            )
        if prefix == "shared" and attn_implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"policy.attn_implementation is {attn_implementation!r}; a shared prefix needs 'sdpa' or 'eager'"
            )
        if prefix_attention in ("split", "flex") and (attn_implementation != "sdpa" or prefix == "duplicate"):
            raise ValueError(
                f"policy.prefix_attention is {prefix_attention!r}; it needs prefix 'auto' or 'shared' and "
                f"attn_implementation 'sdpa', and they are {prefix!r} and {attn_implementation!r}"
            )
        if quantization is not None and lora is None:
            raise ValueError("policy.quantization is given without policy.lora; quantised weights cannot be trained")
        self.path = path
        self.lora = lora
        self.quantization = quantization
        self.sharding = sharding or Sharding()
        self.dtype = dtype
        self.prefix: Prefix = prefix
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.freeze_vision = freeze_vision
        self.prefix_attention: PrefixAttention = prefix_attention
        #: How often the weights have changed since they were loaded.
        self.version = 0
        #: ``prefix`` as settled by the loaded model; None before that.
        self.choice: PrefixChoice | None = None
        self.model: nn.Module | None = None
        self.reference = FrozenReference(lora)
        self.positions = PromptPositions()
        self.features = VisionFeatures()
        #: Whether the adapter at ``path`` is the one that is trained on.
        self.continued = False
        #: The adapter at ``path`` where it was merged into the base, under the one that is trained.
        self.folded: str | None = None
        self._source: Source | None = None
        self._processor: Any = None
        self._family = family
        self._parts: tuple[PromptBatch, list[tuple[Tensor, PromptBatch]]] | None = None
        #: Of compiled rollouts, by size (``orlaif.rollout.compiled``).
        self.decode_caches: dict[tuple[int, ...], Any] = {}

    # ---------------------------------------------------------------- loading

    def load(self, device: torch.device | None = None) -> Policy:
        """Load weights and processor if that has not been done; returns self.

        Args:
            device: where a quantised base goes; it is quantised on its way there. Others stay on the CPU.
        """
        if self.model is not None:
            return self
        source = self.source
        options: dict[str, Any] = {"revision": source.revision}
        if self.quantization is not None:
            if device is None or device.type == "cpu":  # where bitsandbytes has no gradient
                raise ValueError("policy.quantization needs a GPU, and this run has none")
            options["quantization_config"] = adapters.quantization_config(self.quantization)
            options["device_map"] = {"": device}
        model: Any = self.family.load(
            source.model, dtype=getattr(torch, self.dtype), attn_implementation=self.attn_implementation, **options
        )
        if source.adapter is not None and self.lora is None:
            model = fold(model, source.adapter)
        self.choice = choose_prefix(
            model,
            lambda: self.processor,
            self.prefix,
            self.prefix_attention,
            self.attn_implementation,
            self.family,
        )
        tower: list[nn.Module] = []
        if self.freeze_vision:
            tower = self.family.tower(model)
            for parameter in self.family.tower_parameters(model):
                parameter.requires_grad_(False)
        if self.lora is not None and source.adapter is not None:
            quantized = self.quantization is not None
            model, self.continued = start_from(model, self.lora, source.adapter, tower, quantized)
            self.folded = None if self.continued else source.adapter
        elif self.lora is not None:
            model = adapters.attach(model, self.lora, tower)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.lora is not None:
                model.enable_input_require_grads()
        self.model = model
        return self

    def load_reference(self, refreshed: bool = False) -> None:
        """Freeze the policy as it is now to be the reference (:meth:`FrozenReference.freeze`)."""
        self.reference.freeze(self.network, refreshed, self.continued)

    def refresh_reference(self) -> None:
        """Make the policy of this moment the reference (:meth:`FrozenReference.refresh`)."""
        self.reference.refresh(self.network)

    def shard(self, mesh: Any) -> None:
        """Shard policy and reference with FSDP2, layer by layer, the vision tower's included; idempotent.

        Args:
            mesh: one-dimensional device mesh of the processes that share the weights.

        Raises:
            ValueError: a quantised base, which FSDP2 cannot shard.
        """
        if self.quantization is not None:
            raise ValueError("policy.quantization cannot be sharded with FSDP2; use --trainer.strategy ddp")
        for model in (self.model, self.reference.model):
            if model is not None and not sharding.is_sharded(model):
                sharding.shard(model, base_of(model), mesh, self.sharding)

    @property
    def is_sharded(self) -> bool:
        """Whether :meth:`shard` has been called: processes must then run the same layers at the same time."""
        return sharding.is_sharded(self.model)

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """A context in which this process holds all weights of a sharded policy."""
        return sharding.gathered(self.network)

    def stand_in(self, device: torch.device) -> PromptBatch:
        """A batch of one synthetic prompt, for a process that has nothing to do while the others run their layers."""
        computed = sharding.compute_dtype(self.network)
        return synthetic_prompt(self.processor, device, computed, self.family)

    @property
    def network(self) -> Any:
        """The transformers (or PEFT) model, loaded if need be."""
        self.load()
        return self.model

    @property
    def layout(self) -> Layout:
        """How groups go through the loaded model: ``prefix`` as it was resolved."""
        self.load()
        assert self.choice is not None
        return self.choice.layout

    @property
    def attentions(self) -> tuple[str, ...]:
        """What a shared prefix may run on, once the model is loaded; empty for ``duplicate``."""
        return () if self.choice is None else self.choice.attentions

    @property
    def reads_prompt_once(self) -> bool:
        """Whether decoding can share a prompt's cache: full attention in every layer, by our attention function."""
        return self.layout == "shared" and self.choice is not None and self.choice.shares_cache

    @property
    def source(self) -> Source:
        """What ``path`` names: a model, or an adapter and its base."""
        if self._source is None:
            self._source = find_source(self.path)
        return self._source

    @property
    def family(self) -> Family:
        """Where this model differs from others."""
        if self._family is None:
            self._family = family_of(self.config)
        return self._family

    @property
    def processor(self) -> Any:
        """Tokenizer and video processor that lie beside the weights; loaded when first asked for."""
        if self._processor is None:
            self._processor = load_processor(self.path)
        return self._processor

    @property
    def config(self) -> Any:
        """The transformers config, without loading weights."""
        if self.model is not None:
            return self.network.config
        return AutoConfig.from_pretrained(self.source.model, revision=self.source.revision)

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return next(self.network.parameters()).device

    @property
    def pad_id(self) -> int:
        """Id of the token that fills masked places of prompts and completions."""
        return int(self.processor.tokenizer.pad_token_id)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: those of the generation config, else the tokenizer's."""
        return end_ids(getattr(self.network, "generation_config", None), self.processor.tokenizer)

    @property
    def placeholder_ids(self) -> list[int]:
        """Tokens that stand for pixels; never sampled, never counted."""
        return self.family.placeholder_ids(self.config)

    # ---------------------------------------------------------------- forward

    def prompt_positions(self, batch: PromptBatch) -> Tensor:
        """Position ids of the prompts, i64[P, S], or i64[3, P, S] for models with multimodal RoPE."""
        return self.positions.of(self.family, self.network, batch)

    def parts(self, batch: PromptBatch) -> list[tuple[Tensor, PromptBatch]]:
        """What of ``batch`` the model takes in one pass each, and the places i64[p] of those prompts; usually all.

        Those of the last batch are kept, with positions and features: rollout, reference and policy ask for the same.
        """
        if self._parts is None or self._parts[0] is not batch:
            self.positions.forget()
            self.features.forget()
            self._parts = (batch, sub_batches(batch, self.family))
        return self._parts[1]

    def check_context(self, batch: PromptBatch, length: int) -> None:
        """Refuse prompts that the model has no positions for.

        Args:
            batch: P prompts.
            length: most tokens of a completion behind them.

        Raises:
            ValueError: the prompts by their ids, with their lengths.
        """
        limit = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is None or batch.input_ids.shape[1] + length <= limit:
            return
        lengths = zip(batch.prompts, batch.attention_mask.sum(-1).tolist(), strict=True)
        long = [f"{prompt.id!r} ({n} tokens)" for prompt, n in lengths if n + length > limit]
        if long:
            raise ValueError(
                f"prompts longer than the context: {', '.join(long[:5])}{', ...' if len(long) > 5 else ''}, with up to "
                f"{length} tokens of an answer, and the model has {limit} positions; sample fewer or smaller frames "
                "(data.sampling, data.budget), or leave these rows out"
            )

    def mask_placeholders(self, logits: Tensor) -> Tensor:
        """``logits`` [..., V] with -inf at the placeholder tokens."""
        if not (ids := self.placeholder_ids):
            return logits
        return logits.index_fill(-1, torch.tensor(ids, device=logits.device), -torch.inf)

    def completion_logits(self, batch: PromptBatch, completions: Completions, reference: bool = False) -> Tensor:
        """Logits of the positions that predict completion tokens, and of no others.

        Args:
            batch: P prompts.
            completions: their P x G completions.
            reference: by the frozen reference instead of the policy, without gradient.

        Returns:
            [P * G, T, V] in the model's dtype, not divided by a temperature.

        Raises:
            ValueError: ``reference`` with full fine-tuning before :meth:`load_reference`.
        """
        with self._model(reference) as model:
            return self.mask_placeholders(self._forward(model, batch, completions, hidden=False))

    def completion_hidden(
        self, batch: PromptBatch, completions: Completions, reference: bool = False
    ) -> tuple[Tensor, dict[str, Any]]:
        """What a fused head makes the same logits from: the last hidden states at those positions, and the LM head.

        Args:
            batch: P prompts.
            completions: their P x G completions.
            reference: by the frozen reference instead of the policy, without gradient.

        Returns:
            [P * G, T, H] in the model's dtype, and ``weight`` [V, H], ``bias`` [V] (-inf at the placeholder tokens) and
            ``softcap`` as ``orlaif_kernels.linear_grpo_rank_loss`` takes them.

        Raises:
            ValueError: a model whose logits are more than its LM head makes, LoRA on the LM head, or as
                :meth:`completion_logits`.
        """
        with self._model(reference) as model:
            head: Any = self.family.head(model)
            assert self.choice is not None
            plain = self.choice.head
            if plain.reason is not None:
                raise ValueError(
                    f"loss.fused_head: not for model type {base_of(model).config.model_type!r}: {plain.reason}; set it "
                    "to false"
                )
            if type(head) is not nn.Linear:
                raise ValueError(
                    f"loss.fused_head: the LM head is a {type(head).__name__}, not a plain nn.Linear; set it to false"
                )
            hidden = self._forward(model, batch, completions, hidden=True)
        bias: Tensor | None = head.bias
        if ids := self.placeholder_ids:
            bias = torch.zeros_like(head.weight[:, 0]) if bias is None else bias
            bias = bias.index_fill(0, torch.tensor(ids, device=bias.device), -torch.inf)
        if plain.scale != 1.0:
            hidden = hidden * plain.scale
            bias = None if bias is None else bias * plain.scale
        return hidden, {"weight": head.weight, "bias": bias, "softcap": plain.softcap}

    def _model(self, reference: bool) -> contextlib.AbstractContextManager[nn.Module]:
        """The policy, or its reference without gradient."""
        return self.reference.running(self.network) if reference else contextlib.nullcontext(self.network)

    def _forward(self, model: nn.Module, batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
        """Logits or hidden states at the positions that predict completion tokens, [P * G, T, ...]."""
        self.check_context(batch, completions.ids.shape[-1])
        parts = self.parts(batch)
        outputs = [self._pass(model, part, completions.of_prompts(at), hidden) for at, part in parts]
        gathered = getattr(self.network, "is_gathered", False)  # then processes need not call together
        if self.is_sharded and not gathered and self.family.may_split:  # equally many passes, then
            for _ in range(max(exchange(len(parts))) - len(parts)):
                at, part = parts[0]
                outputs[0] = outputs[0] + 0.0 * self._pass(model, part, completions.of_prompts(at), hidden)
        if len(parts) == 1:
            return outputs[0]
        g = completions.group_size
        rows = torch.cat([at for at, _ in parts]).argsort()
        return torch.cat([one.unflatten(0, (-1, g)) for one in outputs])[rows].flatten(0, 1)

    def _pass(self, model: nn.Module, batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
        """The same for prompts that go through the model together."""
        positions = self.prompt_positions(batch)
        with self.features.reused(self.family, model, batch):
            if self.layout == "shared":
                return shared_forward(model, batch, completions, positions, self.attentions, self.family, hidden)
            return duplicate_forward(model, batch, completions, positions, self.pad_id, self.family, hidden)

    def forget_features(self) -> None:
        """Compute features of videos anew; sharded processes must agree on when the vision tower runs."""
        self.features.forget()

    def completion_logps(
        self,
        batch: PromptBatch,
        completions: Completions,
        reference: bool = False,
        temperature: float = 1.0,
        fused_head: bool = False,
        implementation: str = "auto",
    ) -> Tensor:
        """Log-probs of the completion tokens.

        Args:
            batch: P prompts.
            completions: their P x G completions.
            reference: by the frozen reference instead of the policy, without gradient.
            temperature: divides the logits, as in sampling.
            fused_head: never hold all logits at once, by the arithmetic of the loss with a fused head; without
                gradient.
            implementation: ``auto``, ``torch`` or ``triton``.

        Returns:
            f32[P, G, T], 0 where masked; with gradient unless ``reference`` or ``fused_head``.
        """
        ids, mask = completions.ids.flatten(0, 1), completions.mask.flatten(0, 1)
        if fused_head:
            with torch.no_grad():
                hidden, head = self.completion_hidden(batch, completions, reference)
            weight = head.pop("weight")
            logps = linear_logps(
                hidden, weight, ids, mask=mask, temperature=temperature, implementation=implementation, **head
            )
        else:
            logits = self.completion_logits(batch, completions, reference)
            logps = token_statistics(
                logits, ids, mask=mask, temperature=temperature, implementation=implementation
            ).logps
        return logps.view(completions.ids.shape)

    def export(self, folder: str, merge: bool = False) -> None:
        """Write the policy to ``folder`` (:func:`orlaif.policy.export.export_policy`)."""
        export_policy(self, folder, merge)
