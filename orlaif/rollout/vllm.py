"""Completions from vLLM, in the training process, with the policy's weights of this moment.

Each process has one engine, on its GPU. Before a rollout it takes the policy's weights if they have changed, and what
it has cached of prompts and videos is forgotten. With ``lora: merged``, and without LoRA, these are whole weights,
gathered where they are sharded, with the adapter added where there is one (the policy's own are not touched), under the
names of the checkpoint, through vLLM's ``reload_weights``; with ``lora: adapter`` only the adapter moves. vLLM seeds
its process; the trainer's random state is put back after each call from the thread of the step. Its log-probs differ a
little from the trainer's, by other kernels and precisions; the difference is measured, and importance weights correct
the gradient for it (``correction``).

Source: vLLM's offline inference.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from orlaif.policy import Policy
from orlaif.policy.twin import still
from orlaif.rollout.base import BaseRollout, SamplingParams
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.rollout.engine import check_engine, default_room, make_engine, random_state_kept
from orlaif.rollout.engine_adapter import adapter_options, adapter_request, check_adapter, write_adapter
from orlaif.rollout.engine_requests import check_prompts, completions_of, requests_of
from orlaif.rollout.engine_weights import checkpoint_weights
from orlaif.stages import stage
from orlaif.types import Completions, PromptBatch


class VLLMRollout(BaseRollout):
    """A rollout by vLLM (``pip install '.[vllm]'``).

    Args:
        group_size: G, 2 or more.
        sampling: how tokens are drawn, without ``top_p`` and ``top_k``: log-probs would be of another distribution.
        importance_cap: see :class:`~orlaif.rollout.base.BaseRollout`.
        gpu_memory_utilization: share of the GPU's memory for the engine: its weights and its cache.
        lora: how an engine is given a policy with LoRA: ``merged`` = whole weights with the adapter added to them;
            ``adapter`` = the adapter alone, which the engine adds itself (not DoRA, saved modules, quantised bases, or
            adapters of the vision tower).
        sleep_level: what the engine gives back of the GPU's memory while the step trains: 0 nothing, 1 its cache, and
            its weights go to the CPU, 2 both are dropped, and whole weights are handed over for every rollout.
        correction: see :class:`~orlaif.rollout.base.BaseRollout`.
        engine: further arguments of ``vllm.LLM``. ``max_model_len``, the most tokens of a prompt and its answer, is
            by default what the longest prompt needs that the data allows (``data.budget``), and where nothing bounds
            that twice what the first batch needs; at least 1024.

    Raises:
        ValueError: as for a rollout; truncated sampling; before the run, vLLM is not installed, a kind of model that it
            does not serve with video, an adapter that it cannot add, sleep on a CPU, or no room for the longest prompt
            and its answer; other tokens of a prompt than the model's processor makes.
    """

    samples_by_policy = False

    def __init__(
        self,
        group_size: int = 8,
        sampling: SamplingParams | None = None,
        importance_cap: float | None = 2.0,
        gpu_memory_utilization: float = 0.3,
        lora: Literal["merged", "adapter"] = "merged",
        sleep_level: int = 0,
        correction: ImportanceCorrection | None = None,
        engine: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(group_size, sampling, importance_cap, correction)
        if self.sampling.top_p < 1 or self.sampling.top_k:
            raise ValueError(
                "rollout.sampling.top_p and top_k must be 1 and 0 with VLLMRollout, whose log-probs would be those of "
                "the truncated distribution"
            )
        if not 0 < gpu_memory_utilization < 1:
            raise ValueError(f"rollout.gpu_memory_utilization is {gpu_memory_utilization}; it must lie in (0, 1)")
        if lora not in ("merged", "adapter"):
            raise ValueError(f"rollout.lora is {lora!r}; it must be 'merged' or 'adapter'")
        if sleep_level not in (0, 1, 2):
            raise ValueError(f"rollout.sleep_level is {sleep_level}; it must be 0, 1 or 2")
        if lora == "adapter" and sleep_level == 2:
            raise ValueError("rollout.sleep_level is 2, which drops the base that rollout.lora: adapter keeps; use 1")
        self.gpu_memory_utilization = gpu_memory_utilization
        self.lora, self.sleep_level = lora, sleep_level
        self.engine_arguments = engine or {}
        self._engine: Any = None
        self._asleep = False
        #: Most tokens of a prompt and its answer; 0 until that is known.
        self._room = int(self.engine_arguments.get("max_model_len", 0))
        self._weights_of: int | None = None
        self._adapter: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def engine_memory(self, gpu_memory: float) -> int:
        """The share that the engine is given."""
        return int(self.gpu_memory_utilization * gpu_memory)

    @property
    def engine_sleeps(self) -> bool:
        """Whether it has a ``sleep_level``."""
        return self.sleep_level > 0

    def check(self, policy: Policy) -> None:
        """Raise ValueError for what no engine can do with this policy."""
        check_engine(policy, self.sleep_level)
        if self.lora == "adapter":
            check_adapter(policy)

    def prepare(self, policy: Policy, longest: Callable[[], tuple[int, str] | None]) -> None:
        """Check, and settle the engine's room by the longest prompt."""
        self.check(policy)
        if (found := longest()) is None:
            return
        tokens, which = found
        needed = tokens + self.sampling.max_new_tokens
        self._room = self._room or default_room(policy.config, needed)
        if needed > self._room:
            raise ValueError(
                f"rollout.engine.max_model_len is {self._room}, and {which} has {tokens} tokens, its answer up to "
                f"{self.sampling.max_new_tokens}; it must be {needed} or more, or data.budget smaller"
            )

    def engine(self, policy: Policy, longest: int) -> Any:
        """The engine, made on first use.

        Args:
            policy: whose checkpoint it loads.
            longest: tokens of the longest prompt of the first batch.
        """
        if self._engine is None:
            self.check(policy)
            options = {"gpu_memory_utilization": self.gpu_memory_utilization}
            if self.lora == "adapter":
                options |= adapter_options(policy)
            if self.sleep_level:
                options["enable_sleep_mode"] = True
            self._room = self._room or default_room(policy.config, 2 * (longest + self.sampling.max_new_tokens))
            self._engine = make_engine(policy, self._room, options | self.engine_arguments)
        return self._engine

    @stage("weights for vLLM")
    def update(self, policy: Policy, longest: int = 0) -> None:
        """Wake the engine and give it the policy's weights, if they are newer than those it has; all must call.

        Args:
            policy: the model of this moment.
            longest: tokens of the longest prompt of this batch, for an engine that is still to be made.
        """
        engine = self.engine(policy, longest)
        if self._asleep:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            engine.wake_up(tags=["weights"])
        if self._weights_of != policy.version:
            with policy.gathered(), torch.no_grad():
                if self.lora == "adapter":
                    self._write_adapter(policy)
                else:
                    weights = checkpoint_weights(policy)
                    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
            engine.reset_prefix_cache()
            engine.llm_engine.reset_encoder_cache()  # features of videos under the old weights
            self._weights_of = policy.version
        if self._asleep:
            engine.wake_up(tags=["kv_cache"])
            self._asleep = False

    def _write_adapter(self, policy: Policy) -> None:
        """The adapter of this moment in a folder of its own, until the next."""
        folder = tempfile.TemporaryDirectory(prefix="orlaif-adapter-")
        write_adapter(policy, Path(folder.name))
        self._adapter = adapter_request(policy, Path(folder.name))
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = folder

    def check_ahead(self) -> None:
        """Refuse an engine that sleeps while the step trains."""
        if self.sleep_level:
            raise ValueError(
                f"rollout.engine.sleep_level is {self.sleep_level}, by which the engine sleeps while the step trains, "
                "when it is to sample ahead; use 0, or staleness: 0"
            )

    def begin_ahead(self, policy: Policy, whole: bool) -> None:
        """Nothing: the engine has weights of its own."""

    def take_weights(self, policy: Policy, batch: PromptBatch) -> Policy:
        """Give them to the engine; what it returns stands for them, and asks for no newer ones."""
        with random_state_kept():
            self.update(policy, int(batch.attention_mask.sum(-1).max()) if len(batch) else 0)
        return still(policy)

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt, with the log-probs that vLLM sampled them by."""
        is_step = threading.current_thread() is threading.main_thread()  # the random state is that of all threads
        with random_state_kept() if is_step else nullcontext():
            self.update(policy, int(batch.attention_mask.sum(-1).max()))
            self.check_room(batch)
            outputs = self._sample(policy, batch, generator)
            if self.sleep_level:
                self._engine.sleep(level=self.sleep_level)
                self._asleep = True
                if self.sleep_level == 2:
                    self._weights_of = None
        check_prompts(batch, outputs)
        return completions_of(policy, outputs, batch.input_ids.device)

    def check_room(self, batch: PromptBatch) -> None:
        """Raise ValueError for prompts without room for their answer, where the room is known."""
        for prompt, length in zip(batch.prompts, batch.attention_mask.sum(-1).tolist(), strict=True):
            if self._room and length + self.sampling.max_new_tokens > self._room:
                raise ValueError(
                    f"prompt {prompt.id!r} has {length} tokens and its answer up to {self.sampling.max_new_tokens}, "
                    f"more than the engine's max_model_len of {self._room}; set rollout.engine.max_model_len"
                )

    def _sample(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> list[Any]:
        """What vLLM returns for each prompt."""
        from vllm import SamplingParams as VLLMSampling

        settings = [
            VLLMSampling(
                n=self.group_size,
                temperature=self.sampling.temperature,
                max_tokens=self.sampling.max_new_tokens,
                logprobs=0,  # of the sampled token
                seed=int(torch.randint(2**31, (1,), generator=one, device=one.device)),
                stop_token_ids=list(policy.eos_ids),
                logit_bias=dict.fromkeys(policy.placeholder_ids, -100.0),
            )
            for one in generator
        ]
        options = {} if self._adapter is None else {"lora_request": self._adapter}
        return self._engine.generate(requests_of(policy, batch), settings, use_tqdm=False, **options)
