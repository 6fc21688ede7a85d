"""The policy: a Hugging Face video-language model, and log-probs of completions.

Weights are loaded on first use (or by :meth:`Policy.load`), so that a recipe can be read, checked and printed without
them. Objects that it holds and modules beside it do the rest: ``checkpoint`` (what is known without weights),
``settings`` and ``loading``, ``reference`` (frozen), ``last`` (positions and features of the last batch), ``choice``
(how groups go through the model) and ``passes``, ``head`` (for a fused loss); ``export`` writes it to a folder.

The distribution is over the model's vocabulary without its image and video placeholder tokens: a sampled placeholder
would ask the model for pixels that do not exist. Sampling, log-probs and loss exclude them alike.

Shapes: P prompts, G completions, T completion tokens, V vocabulary, L = S + G * T.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from orlaif_kernels import linear_logps, token_statistics
from torch import Tensor, nn

from orlaif.answer_format import AnswerFormat, FormatName, named_format
from orlaif.distributed import sharding
from orlaif.distributed.sequence import SequenceGroup
from orlaif.distributed.sharding import Sharding
from orlaif.policy.asking import base_of
from orlaif.policy.chat import Chat
from orlaif.policy.checkpoint import Checkpoint
from orlaif.policy.context import check_context
from orlaif.policy.ending import end_ids
from orlaif.policy.export import export_policy
from orlaif.policy.families import Family
from orlaif.policy.head import fused, plain_head
from orlaif.policy.loading import load_model
from orlaif.policy.passes import LastBatch, completion_outputs
from orlaif.policy.prefix.attention import PrefixAttention
from orlaif.policy.prefix.choice import Layout, Prefix, PrefixChoice
from orlaif.policy.prefix.synthetic import synthetic_prompt
from orlaif.policy.recomputation import Recomputation, recomputation
from orlaif.policy.reference import FrozenReference
from orlaif.policy.settings import check_settings
from orlaif.types import Completions, PromptBatch


class Policy(Checkpoint):
    """A video-language model to be trained.

    Args:
        path: folder of a Hugging Face checkpoint or a PEFT adapter, or a hub id of one.
        lora: arguments of ``peft.LoraConfig``; None means full fine-tuning (of an adapter's base, it merged into it).
        dtype: of the weights: ``bfloat16``, ``float16``, ``float32`` or ``float64``.
        prefix: ``shared`` = a group in one row (the prompt is paid once), ``fork`` = completions behind copies of their
            prompt's cache (paid once too; not under gradient checkpointing), ``duplicate`` = the prompt again for each,
            ``auto`` = the first by which the loaded model gives its own log-probs and gradient; the log says why.
        attn_implementation: of transformers; a shared prefix needs ``sdpa``, or ``eager``, which has ``mask`` only.
        gradient_checkpointing: what the backward pass computes again: ``layers`` (true), all of them but products and
            attention (``selective``: ``orlaif.policy.recomputation``), or ``none`` (false).
        freeze_vision: leave all that makes features of a video as it is (tower and projector: everything outside
            decoder and LM head), and give it no adapter; features are then computed once per prompt for rollout,
            reference and policy together.
        prefix_attention: of a shared prefix: ``mask``, ``split`` or ``flex`` (``orlaif.policy.prefix.attention``), or
            ``auto`` = ``mask`` or ``split`` by the size of the batch.
        quantization: arguments of ``transformers.BitsAndBytesConfig`` for the frozen base under LoRA (QLoRA).
        sharding: how FSDP2 treats the weights, under ``--trainer.strategy fsdp2``.
        family: what this model does otherwise (``orlaif.policy.families``), by ``class_path``; by default by its type.
        answer_format: what of a completion is the answer (``orlaif.answer_format``), for oracles and evaluation alike.
        chat: how the model is asked: prompt template, arguments of its chat template.
        sequence_parallel: processes that share each prompt, which is divided among them (``orlaif.policy.sequence``).
        activation_offloading: what layers keep for the backward pass waits on the host (``orlaif.policy.offloading``).

    Raises:
        ValueError: an unknown ``dtype``, ``prefix`` or ``prefix_attention``, or ``quantization`` without ``lora``; on
            loading, a path that holds no checkpoint, or a ``prefix`` by which the model gives other log-probs.
    """

    def __init__(
        self,
        path: str,
        lora: dict[str, Any] | None = None,
        dtype: str = "bfloat16",
        prefix: Prefix = "auto",
        attn_implementation: str = "sdpa",
        gradient_checkpointing: bool | Recomputation = False,
        freeze_vision: bool = False,
        prefix_attention: PrefixAttention = "auto",
        quantization: dict[str, Any] | None = None,
        sharding: Sharding | None = None,
        family: Family | None = None,
        answer_format: AnswerFormat | FormatName = "whole",
        chat: Chat | None = None,
        sequence_parallel: int = 1,
        activation_offloading: bool = False,
    ) -> None:
        super().__init__(path, family)
        self.answer_format, self.chat = named_format(answer_format), chat or Chat()
        self.lora, self.quantization, self.dtype, self.sharding = lora, quantization, dtype, sharding or Sharding()
        self.prefix, self.prefix_attention, self.freeze_vision = prefix, prefix_attention, freeze_vision
        self.attn_implementation, self.sequence_parallel = attn_implementation, sequence_parallel
        self.gradient_checkpointing = recomputation(gradient_checkpointing)
        self.activation_offloading = activation_offloading
        check_settings(self)
        #: The processes that share the prompts of the passes that run now, if they do.
        self.sequence: SequenceGroup | None = None
        #: How often the weights have changed since they were loaded.
        self.version = 0
        #: ``prefix`` as settled by the loaded model; None before that.
        self.choice: PrefixChoice | None = None
        self.reference = FrozenReference(lora)
        self.last = LastBatch()
        self.positions, self.features = self.last.positions, self.last.features
        #: Whether the adapter at ``path`` is the one that is trained on.
        self.continued = False
        #: The adapter at ``path`` where it was merged into the base, under the one that is trained.
        self.folded: str | None = None
        #: Of compiled rollouts, by size (``orlaif.rollout.compiled``).
        self.decode_caches: dict[tuple[int, ...], Any] = {}

    def load(self, device: torch.device | None = None, later: bool = False) -> Policy:
        """Load weights and processor if that has not been done; returns self.

        Args:
            device: where a quantised base goes; it is quantised on its way there. Others stay on the CPU.
            later: leave weights in their files where that can be, for :meth:`shard` to read (``orlaif.policy.unread``).
        """
        if self.model is not None:
            return self
        made = load_model(self, device, later)
        self.model, self.choice, self.continued, self.folded = made.model, made.choice, made.continued, made.folded
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
    def reads_prompt_once(self) -> bool:
        """Whether decoding can share a prompt's cache: full attention in every layer, by our attention function."""
        return self.layout == "shared" and self.choice is not None and self.choice.shares_cache

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return next(self.network.parameters()).device

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: those of the generation config, else the tokenizer's."""
        return end_ids(getattr(self.network, "generation_config", None), self.processor.tokenizer)

    def prompt_positions(self, batch: PromptBatch) -> Tensor:
        """Position ids of the prompts, i64[P, S], or i64[3, P, S] for models with multimodal RoPE."""
        return self.positions.of(self.family, self.network, batch)

    def parts(self, batch: PromptBatch) -> list[tuple[Tensor, PromptBatch]]:
        """What of ``batch`` the model takes in one pass each, and the places i64[p] of those prompts; usually all."""
        return self.last.parts(batch, self.family)

    def check_context(self, batch: PromptBatch, length: int) -> None:
        """Refuse prompts that leave no room for ``length`` tokens (:func:`orlaif.policy.context.check_context`)."""
        check_context(self.config, batch, length)

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
            return self.mask_placeholders(completion_outputs(self, model, batch, completions, hidden=False))

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
            assert self.choice is not None
            head = plain_head(model, self.family.head(model), self.choice.head)
            hidden = completion_outputs(self, model, batch, completions, hidden=True)
        return fused(hidden, head, self.choice.head, self.placeholder_ids)

    def _model(self, reference: bool) -> contextlib.AbstractContextManager[nn.Module]:
        """The policy, or its reference without gradient."""
        return self.reference.running(self.network) if reference else contextlib.nullcontext(self.network)

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
