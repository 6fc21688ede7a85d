"""Completions from vLLM, in the training process, with the policy's weights of this moment.

Each process has one engine, on its GPU. Before a rollout it takes the policy's weights if they have
changed: whole ones, gathered where they are sharded, with the adapter added where there is one (the policy's own are
not touched), under the names of the checkpoint, through vLLM's ``reload_weights``; what it has cached of prompts and
videos is then forgotten. vLLM seeds its process; the trainer's random state is put back after each call. Its log-probs
differ a little from the trainer's, by other kernels and precisions; the difference is measured, and truncated
importance weights correct the gradient for it (``correction``).

Sources: vLLM's offline inference; truncated importance sampling between sampler and trainer (Yao et al. 2025, "Your
efficient RL framework secretly brings you off-policy RL training").
"""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from orlaif.distributed.sync import local_process_index, num_processes, process_index
from orlaif.policy import Policy
from orlaif.policy.encoding import video_metadata
from orlaif.rollout.base import BaseRollout, SamplingParams
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.rollout.engine_weights import checkpoint_weights
from orlaif.types import Completions, PromptBatch, VideoClip

#: Kinds of models that vLLM serves with images only.
_WITHOUT_VIDEO = ("smolvlm", "idefics3")
#: The default correction.
TOKEN_TRUNCATION = ImportanceCorrection()
#: Room for a sequence that an engine has at least, where the model allows it.
_ROOM = 1024


class VLLMRollout(BaseRollout):
    """A rollout by vLLM (``pip install '.[vllm]'``).

    Args:
        group_size: G, 2 or more.
        sampling: how tokens are drawn, without ``top_p`` and ``top_k``: log-probs would be of another distribution.
        correction: see :class:`~orlaif.rollout.base.BaseRollout`; by default truncated weights of tokens.
        gpu_memory_utilization: share of the GPU's memory for the engine: its weights and its cache.
        engine: further arguments of ``vllm.LLM``. ``max_model_len``, the most tokens of a prompt and its answer, is
            by default twice what the first batch needs, rounded up to a power of two, and at least 1024.

    Raises:
        ValueError: as for a rollout; truncated sampling; on first use, vLLM is not installed, a kind of model that it
            does not serve with video, a prompt without room for its answer, or other tokens of a prompt than the
            model's processor makes.
    """

    def __init__(
        self,
        group_size: int = 8,
        sampling: SamplingParams | None = None,
        correction: ImportanceCorrection | None = TOKEN_TRUNCATION,
        gpu_memory_utilization: float = 0.3,
        engine: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(group_size, sampling, correction)
        if self.sampling.top_p < 1 or self.sampling.top_k:
            raise ValueError(
                "rollout.sampling.top_p and top_k must be 1 and 0 with VLLMRollout, whose log-probs would be those of "
                "the truncated distribution"
            )
        if not 0 < gpu_memory_utilization < 1:
            raise ValueError(f"rollout.gpu_memory_utilization is {gpu_memory_utilization}; it must lie in (0, 1)")
        self.gpu_memory_utilization = gpu_memory_utilization
        self.engine_arguments = engine or {}
        self._engine: Any = None
        self._room = 0
        self._weights_of: int | None = None

    def engine_memory(self, gpu_memory: float) -> int:
        """The share that the engine is given."""
        return int(self.gpu_memory_utilization * gpu_memory)

    def engine(self, policy: Policy, longest: int) -> Any:
        """The engine, made on first use.

        Args:
            policy: whose checkpoint it loads.
            longest: tokens of the longest prompt of the first batch.
        """
        if self._engine is not None:
            return self._engine
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("rollout is VLLMRollout, which needs vLLM: pip install '.[vllm]'")
        if (kind := policy.config.model_type) in _WITHOUT_VIDEO:
            raise ValueError(
                f"rollout is VLLMRollout, and vLLM serves models of type {kind!r} without video; use "
                "orlaif.rollout.Rollout"
            )
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, to be given weights
        from vllm import LLM

        self._room = int(self.engine_arguments.get("max_model_len", self._default_room(policy, longest)))
        options: dict[str, Any] = {
            "model": policy.source.model,
            "revision": policy.source.revision,
            "dtype": policy.dtype,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "logprobs_mode": "processed_logprobs",  # at the temperature, without the excluded tokens
            "limit_mm_per_prompt": {"video": 1},
            "seed": process_index(),
            "max_model_len": self._room,
        }
        if num_processes() > 1:
            options["distributed_executor_backend"] = "external_launcher"
        with _launched_environment():
            self._engine = LLM(**options | self.engine_arguments)
        return self._engine

    def _default_room(self, policy: Policy, longest: int) -> int:
        needed = longest + self.sampling.max_new_tokens
        room = max(_ROOM, 1 << (2 * needed - 1).bit_length())
        positions = getattr(policy.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return min(room, positions or room)

    def update(self, policy: Policy, longest: int = 0) -> None:
        """Give the engine the policy's weights, if they are newer than those it has; all processes must call.

        Args:
            policy: the model of this moment.
            longest: tokens of the longest prompt of this batch, for an engine that is still to be made.
        """
        if self._weights_of == policy.version:
            return
        engine = self.engine(policy, longest)
        with policy.gathered(), torch.no_grad():
            weights = checkpoint_weights(policy)
            engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        engine.reset_prefix_cache()
        engine.llm_engine.reset_encoder_cache()  # features of videos under the old weights
        self._weights_of = policy.version

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt, with the log-probs that vLLM sampled them by."""
        with random_state_kept():
            self.update(policy, int(batch.attention_mask.sum(-1).max()))
            self._check_room(batch)
            outputs = self._sample(policy, batch, generator)
        for prompt, output, ids, mask in zip(
            batch.prompts, outputs, batch.input_ids, batch.attention_mask, strict=True
        ):
            if list(output.prompt_token_ids) != ids[mask.bool()].tolist():
                raise ValueError(
                    f"vLLM made {len(output.prompt_token_ids)} tokens of prompt {prompt.id!r}, other ones than the "
                    f"model's processor ({int(mask.sum())}); use orlaif.rollout.Rollout for this model"
                )
        return _completions(policy, outputs, batch.input_ids.device)

    def _check_room(self, batch: PromptBatch) -> None:
        for prompt, length in zip(batch.prompts, batch.attention_mask.sum(-1).tolist(), strict=True):
            if length + self.sampling.max_new_tokens > self._room:
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
        prompts = [_request(text, clip) for text, clip in zip(batch.texts, batch.clips, strict=True)]
        return self.engine(policy, 0).generate(prompts, settings, use_tqdm=False)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random state of torch, numpy and Python back afterwards: an engine seeds its whole process."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def _launched_environment() -> Iterator[None]:
    """Tell vLLM's external launcher which process this is; Lightning's own launcher leaves these names unset."""
    if num_processes() == 1:
        yield
        return
    values = {"RANK": process_index(), "WORLD_SIZE": num_processes(), "LOCAL_RANK": local_process_index()}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _request(text: str, clip: VideoClip) -> dict[str, Any]:
    metadata = video_metadata(clip)
    frames = clip.frames.permute(0, 2, 3, 1).cpu().numpy()
    about = {
        "total_num_frames": metadata.total_num_frames,
        "fps": metadata.fps,
        "duration": metadata.duration,
        "frames_indices": metadata.frames_indices,
        "video_backend": "torchcodec",
        "do_sample_frames": False,
    }
    return {
        "prompt": text,
        "multi_modal_data": {"video": [(frames, about)]},
        "mm_processor_kwargs": {"do_sample_frames": False, "fps": metadata.sampled_fps},
    }


def _completions(policy: Policy, outputs: Sequence[Any], device: torch.device) -> Completions:
    rows = [[list(answer.token_ids) for answer in output.outputs] for output in outputs]
    texts = policy.processor.tokenizer.batch_decode([row for group in rows for row in group], skip_special_tokens=True)
    g = len(rows[0])
    answers = tuple(tuple(text.strip() for text in texts[i * g : (i + 1) * g]) for i in range(len(rows)))
    made = Completions.padded(rows, answers, policy.pad_id, device)
    logps = torch.zeros(made.ids.shape, dtype=torch.float32)
    for i, output in enumerate(outputs):
        for j, answer in enumerate(output.outputs):
            for k, (token, logprobs) in enumerate(zip(answer.token_ids, answer.logprobs, strict=True)):
                logps[i, j, k] = logprobs[token].logprob
    return Completions(ids=made.ids, mask=made.mask, texts=made.texts, logps=logps.to(device))
