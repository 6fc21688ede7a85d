"""The policy: a Hugging Face video-language model, its frozen reference, and log-probs of completions.

Weights are loaded on first use (or by :meth:`Policy.load`), so that a recipe can be read, checked and printed without
them. The reference is the base model with the adapter off (LoRA), or a frozen copy (full fine-tuning).

The distribution is over the model's vocabulary without its image and video placeholder tokens: a sampled placeholder
would ask the model for pixels that do not exist. Sampling, log-probs and loss exclude them alike.

Shapes: P prompts, G completions, T completion tokens, V vocabulary, L = S + G * T.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from orlaif_kernels import linear_logps
from orlaif_kernels.reference import token_logps
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from orlaif.distributed import sharding
from orlaif.distributed.sharding import Sharding
from orlaif.distributed.sync import process_index
from orlaif.policy import lora as adapters
from orlaif.policy.hub import check_checkpoint, copy_processor, load_processor
from orlaif.policy.prefix.attention import PrefixAttention, enable_grouping
from orlaif.policy.prefix.forward import base_of, duplicate_forward, prompt_positions, shared_forward
from orlaif.policy.prefix.probe import synthetic_prompt, usable_attentions
from orlaif.policy.vision import VisionFeatures, vision_tower
from orlaif.types import Completions, PromptBatch

log = logging.getLogger(__name__)

Prefix = Literal["auto", "shared", "duplicate"]
#: Families for which tests show that the LM head on the last hidden states is all that makes the logits.
FUSED_HEAD_FAMILIES = ("qwen3_vl", "qwen2_5_vl", "llava_onevision", "smolvlm")
_PLACEHOLDERS = ("image_token_id", "video_token_id", "image_token_index", "video_token_index")
_DTYPES = ("bfloat16", "float16", "float32", "float64")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run with the model in eval mode, then put it back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Policy(nn.Module):
    """A video-language model to be trained.

    Args:
        path: folder of a Hugging Face checkpoint, or a hub id.
        lora: arguments of ``peft.LoraConfig``; None means full fine-tuning.
        dtype: of the weights: ``bfloat16``, ``float16``, ``float32`` or ``float64``.
        prefix: ``shared`` = a group in one row (exact, the prompt is paid once), ``duplicate`` = the prompt again for
            each completion, ``auto`` = shared where a check on the loaded model, with its own weights, gives the
            model's own log-probs, else duplicate; the log says which and why.
        attn_implementation: of transformers; a shared prefix needs ``sdpa``, or ``eager``, which has ``mask`` only.
        gradient_checkpointing: recompute activations in the backward pass.
        freeze_vision: leave the vision tower as it is, and give it no adapter; its features are then computed once per
            prompt for rollout, reference and policy together, where nothing else on their way is trained either.
        prefix_attention: of a shared prefix: ``mask``, ``split`` or ``flex`` (``orlaif.policy.prefix.attention``), or
            ``auto`` = ``mask`` or ``split`` by the size of the batch.
        quantization: arguments of ``transformers.BitsAndBytesConfig`` for the frozen base under a LoRA adapter (QLoRA);
            needs bitsandbytes.
        sharding: how FSDP2 treats the weights, under ``--trainer.strategy fsdp2``.

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
        #: What a shared prefix may run on, once the model is loaded; empty for ``duplicate``.
        self.attentions: tuple[str, ...] = ()
        self.model: nn.Module | None = None
        self.reference: nn.Module | None = None
        self._reference_adapter = False
        self._processor: Any = None
        self._positions: tuple[PromptBatch, Tensor] | None = None
        self._features = VisionFeatures()
        #: Of compiled rollouts, by size (``orlaif.rollout.decoding``).
        self.decode_caches: dict[tuple[int, ...], Any] = {}

    # ---------------------------------------------------------------- loading

    def load(self, device: torch.device | None = None) -> Policy:
        """Load weights and processor if that has not been done; returns self.

        Args:
            device: where a quantised base goes; it is quantised on its way there. Others stay on the CPU.
        """
        if self.model is not None:
            return self
        check_checkpoint(self.path)
        options: dict[str, Any] = {}
        if self.quantization is not None:
            if device is None or device.type == "cpu":  # where bitsandbytes has no gradient
                raise ValueError("policy.quantization needs a GPU, and this run has none")
            options["quantization_config"] = adapters.quantization_config(self.quantization)
            options["device_map"] = {"": device}
        model: Any = AutoModelForImageTextToText.from_pretrained(
            self.path, dtype=getattr(torch, self.dtype), attn_implementation=self.attn_implementation, **options
        )
        self._choose_prefix(model)
        tower = vision_tower(model).requires_grad_(False) if self.freeze_vision else None
        if self.lora is not None:
            model = adapters.attach(model, self.lora, tower)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if self.lora is not None:
                model.enable_input_require_grads()
        self.model = model
        return self

    def _choose_prefix(self, model: Any) -> None:
        """Settle ``prefix`` by what the loaded model does."""
        if self.prefix == "duplicate":
            return
        family = model.config.model_type
        reason = f"attn_implementation is {self.attn_implementation!r}, not 'sdpa' or 'eager'"
        if self.attn_implementation in ("sdpa", "eager"):
            wanted: tuple[str, ...] = ("mask",)
            if self.attn_implementation == "sdpa":
                enable_grouping(model)
                wanted = ("mask", "split") if self.prefix_attention == "auto" else (self.prefix_attention,)
            self.attentions, reason = usable_attentions(
                model, lambda: self.processor, wanted, _placeholders(model.config)
            )
        if self.attentions:
            log.info("prefix: %s chose 'shared' for model type %r: %s", self.prefix, family, reason)
            self.prefix = "shared"
        elif self.prefix == "shared" or self.prefix_attention != "auto":
            raise ValueError(f"policy.prefix is {self.prefix!r}, but not for model type {family!r}: {reason}")
        else:
            log.info("prefix: auto chose 'duplicate' for model type %r: %s", family, reason)
            self.prefix = "duplicate"

    def load_reference(self, refreshed: bool = False) -> None:
        """Freeze the policy as it is now to be the reference; with LoRA that is the base model, not a copy.

        Args:
            refreshed: :meth:`refresh_reference` will be called: with LoRA, add a second, frozen adapter.
        """
        if self.lora is None:
            self.reference = copy.deepcopy(self.network).eval().requires_grad_(False)
        elif refreshed:
            adapters.add_reference(self.network, self.lora)
            self._reference_adapter = True

    def shard(self, mesh: Any) -> None:
        """Shard policy and reference with FSDP2, layer by layer, the vision tower's included; idempotent.

        Args:
            mesh: one-dimensional device mesh of the processes that share the weights.

        Raises:
            ValueError: a quantised base, which FSDP2 cannot shard.
        """
        if self.quantization is not None:
            raise ValueError("policy.quantization cannot be sharded with FSDP2; use --trainer.strategy ddp")
        for model in (self.model, self.reference):
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
        return synthetic_prompt(self.processor, device, computed)

    def refresh_reference(self) -> None:
        """Make the policy of this moment the reference.

        Raises:
            ValueError: :meth:`load_reference` made none that can be refreshed.
        """
        if self._reference_adapter:
            adapters.refresh_reference(self.network)
        elif self.reference is not None:
            self.reference.load_state_dict(self.network.state_dict())
        else:
            raise ValueError("there is no reference to refresh; call load_reference(refreshed=True) first")

    @property
    def network(self) -> Any:
        """The transformers (or PEFT) model, loaded if need be."""
        self.load()
        return self.model

    @property
    def reads_prompt_once(self) -> bool:
        """Whether decoding can share a prompt's cache: full attention in every layer, by our attention function."""
        return self.prefix == "shared" and self.attn_implementation == "sdpa"

    @property
    def processor(self) -> Any:
        """The checkpoint's own processor."""
        if self._processor is None:
            self._processor = load_processor(self.path)
        return self._processor

    @property
    def config(self) -> Any:
        """The transformers config, without loading weights."""
        if self.model is not None:
            return self.network.config
        check_checkpoint(self.path)
        return AutoConfig.from_pretrained(self.path)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def pad_id(self) -> int:
        """Token that fills masked places."""
        return int(self.processor.tokenizer.pad_token_id)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: those of the generation config, else the tokenizer's."""
        ids = getattr(getattr(self.network, "generation_config", None), "eos_token_id", None)
        if ids is None:
            ids = self.processor.tokenizer.eos_token_id
        return tuple(ids) if isinstance(ids, (list, tuple)) else (int(ids),)

    @property
    def placeholder_ids(self) -> list[int]:
        """Tokens that stand for pixels; never sampled, never counted."""
        return _placeholders(self.config)

    # ---------------------------------------------------------------- forward

    def prompt_positions(self, batch: PromptBatch) -> Tensor:
        """Position ids of the prompts, i64[P, S], or i64[3, P, S] for models with multimodal RoPE.

        Those of the last batch are kept: rollout, reference and policy ask for the same.
        """
        if self._positions is None or self._positions[0] is not batch:
            self._positions = (batch, prompt_positions(self.network, batch))
        return self._positions[1]

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
            ValueError: a family that is not tested, a head that is more than a matrix (LoRA on the LM head), or as
                :meth:`completion_logits`.
        """
        with self._model(reference) as model:
            base = base_of(model)
            if base.config.model_type not in FUSED_HEAD_FAMILIES:
                raise ValueError(
                    f"loss.fused_head: tests show it equal for {', '.join(FUSED_HEAD_FAMILIES)} only, and this is "
                    f"{base.config.model_type}, which may do more to its logits; set it to false"
                )
            head = base.get_output_embeddings()
            if type(head) is not nn.Linear:
                raise ValueError(
                    f"loss.fused_head: the LM head is a {type(head).__name__}, not a plain nn.Linear; set it to false"
                )
            hidden = self._forward(model, batch, completions, hidden=True)
        bias: Tensor | None = head.bias
        if ids := self.placeholder_ids:
            bias = torch.zeros_like(head.weight[:, 0]) if bias is None else bias
            bias = bias.index_fill(0, torch.tensor(ids, device=bias.device), -torch.inf)
        softcap = getattr(self.config.get_text_config(), "final_logit_softcapping", None)
        return hidden, {"weight": head.weight, "bias": bias, "softcap": softcap}

    @contextlib.contextmanager
    def _model(self, reference: bool) -> Iterator[nn.Module]:
        """The policy, or its reference without gradient."""
        if not reference:
            yield self.network
            return
        with torch.no_grad():
            if self.lora is None:
                if self.reference is None:
                    raise ValueError("the reference is not loaded; call load_reference() before training starts")
                yield self.reference
            elif self._reference_adapter:
                with evaluating(self.network), adapters.adapter_active(self.network, adapters.REFERENCE):
                    yield self.network
            else:
                with evaluating(self.network), self.network.disable_adapter():
                    yield self.network

    def _forward(self, model: nn.Module, batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
        """Logits or hidden states at the positions that predict completion tokens, [P * G, T, ...]."""
        positions = self.prompt_positions(batch)
        with self.vision(model, batch):
            if self.prefix == "shared":
                return shared_forward(model, batch, completions, positions, self.attentions, hidden)
            return duplicate_forward(model, batch, completions, positions, self.pad_id, hidden)

    def vision(self, model: nn.Module, batch: PromptBatch) -> contextlib.AbstractContextManager[None]:
        """A context in which ``model`` reuses the features of ``batch``'s videos, where nothing trained makes them."""
        return self._features.reused(model, batch)

    def forget_features(self) -> None:
        """Compute features of videos anew; sharded processes must agree on when the vision tower runs."""
        self._features.forget()

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
            implementation: of the fused head: ``auto``, ``torch`` or ``triton``.

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
            logps = token_logps(logits, ids, mask=mask, temperature=temperature)
        return logps.view(completions.ids.shape)

    # ----------------------------------------------------------------- export

    def export(self, folder: str, merge: bool = False) -> None:
        """Write the policy to ``folder`` for the rest of the ecosystem.

        A Hugging Face folder (or, with LoRA, a PEFT adapter) with the base checkpoint's processor unchanged. All
        processes must call it where the policy is sharded; process 0 writes.

        Args:
            folder: created where it is missing.
            merge: with LoRA, write a whole model with the adapter merged into it instead: into the base as its
                checkpoint has it, in ``policy.dtype``, where training saw it quantised.
        """
        model = self.network
        weights = sharding.full_state_dict(model) if self.is_sharded else None
        if process_index() > 0:
            return
        options: dict[str, Any] = {} if weights is None else {"state_dict": weights}
        if self.lora is None:
            model.save_pretrained(folder, **options)
        elif not merge:
            model.save_pretrained(folder, selected_adapters=[adapters.POLICY], **options)
        else:
            with tempfile.TemporaryDirectory() as adapter:
                model.save_pretrained(adapter, selected_adapters=[adapters.POLICY], **options)
                adapters.merged(self.path, adapter, self.dtype).save_pretrained(folder)
        copy_processor(self.path, folder)


def _placeholders(config: Any) -> list[int]:
    return sorted({int(v) for name in _PLACEHOLDERS if (v := getattr(config, name, None)) is not None})
