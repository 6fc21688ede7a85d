"""Completions from vLLM, in the training process, with the policy's weights of this moment.

Each process has an engine of its own on its own GPU. Before a rollout it takes the policy's weights if they have
changed: whole ones, gathered where they are sharded, with the adapter added where there is one (the policy's own are
not touched). vLLM's log-probs differ a little from the trainer's, by other kernels and precisions; the difference is
measured, and truncated importance weights correct the gradient for it (``importance_cap``).

Sources: vLLM's offline inference; truncated importance sampling between sampler and trainer (Yao et al. 2025, "Your
efficient RL framework secretly brings you off-policy RL training").
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from orlaif.distributed.sync import num_processes, process_index
from orlaif.policy import Policy
from orlaif.policy import lora as adapters
from orlaif.policy.encoding import video_metadata
from orlaif.policy.prefix.forward import base_of
from orlaif.rollout.base import BaseRollout, SamplingParams
from orlaif.types import Completions, PromptBatch, VideoClip


class VLLMRollout(BaseRollout):
    """A rollout by vLLM (``pip install orlaif[vllm]``).

    Args:
        group_size: G, 2 or more.
        sampling: how tokens are drawn, without ``top_p`` and ``top_k``: log-probs would be of another distribution.
        importance_cap: see :class:`~orlaif.rollout.base.BaseRollout`.
        gpu_memory_utilization: share of the GPU's memory for the engine: its weights and its cache.
        engine: further arguments of ``vllm.LLM``, such as ``max_model_len``.

    Raises:
        ValueError: as for a Rollout; truncated sampling; on first use, vLLM is not installed, or it makes other tokens
            of a prompt than the model's own processor does.
    """

    def __init__(
        self,
        group_size: int = 8,
        sampling: SamplingParams | None = None,
        importance_cap: float | None = 2.0,
        gpu_memory_utilization: float = 0.3,
        engine: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(group_size, sampling, importance_cap=importance_cap)
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
        self._weights_of: int | None = None

    def engine_memory(self, gpu_memory: float) -> int:
        """The share that the engine is given."""
        return int(self.gpu_memory_utilization * gpu_memory)

    def engine(self, policy: Policy) -> Any:
        """The engine, made on first use."""
        if self._engine is None:
            if importlib.util.find_spec("vllm") is None:
                raise ValueError("rollout is VLLMRollout, which needs vLLM: pip install orlaif[vllm]")
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, to be given weights
            from vllm import LLM

            options: dict[str, Any] = {
                "model": policy.path,
                "dtype": policy.dtype,
                "gpu_memory_utilization": self.gpu_memory_utilization,
                "logprobs_mode": "processed_logprobs",  # at the temperature, without the excluded tokens
                "limit_mm_per_prompt": {"video": 1},
                "seed": process_index(),
            }
            if num_processes() > 1:
                options["distributed_executor_backend"] = "external_launcher"
            self._engine = LLM(**options | self.engine_arguments)
        return self._engine

    def update(self, policy: Policy) -> None:
        """Give the engine the policy's weights, if they are newer than its own; all processes must call."""
        if self._weights_of == policy.version:
            return
        engine = self.engine(policy)
        with policy.gathered(), torch.no_grad():
            engine.apply_model(lambda model: model.load_weights(whole_weights(policy)) and None)
        engine.reset_prefix_cache()
        self._weights_of = policy.version

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt, with the log-probs that vLLM sampled them by."""
        from vllm import SamplingParams as VLLMSampling

        self.update(policy)
        stop = list(policy.eos_ids)
        settings = [
            VLLMSampling(
                n=self.group_size,
                temperature=self.sampling.temperature,
                max_tokens=self.sampling.max_new_tokens,
                logprobs=0,  # of the sampled token
                seed=int(torch.randint(2**31, (1,), generator=own, device=own.device)),
                stop_token_ids=stop,
                logit_bias=dict.fromkeys(policy.placeholder_ids, -100.0),
            )
            for own in generator
        ]
        prompts = [_request(text, clip) for text, clip in zip(batch.texts, batch.clips, strict=True)]
        outputs = self.engine(policy).generate(prompts, settings, use_tqdm=False)
        for prompt, own, ids, mask in zip(batch.prompts, outputs, batch.input_ids, batch.attention_mask, strict=True):
            if list(own.prompt_token_ids) != ids[mask.bool()].tolist():
                raise ValueError(
                    f"vLLM made {len(own.prompt_token_ids)} tokens of prompt {prompt.id!r}, other ones than the "
                    f"model's processor ({int(mask.sum())}); use orlaif.rollout.Rollout for this model"
                )
        return _completions(policy, outputs, batch.input_ids.device)


def whole_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Names, as in the checkpoint of the base, and weights with the adapter's part added; nothing is changed.

    Args:
        policy: loaded; gathered, where it is sharded.
    """
    base = base_of(policy.network)
    changed = dict(adapters.adapted_weights(base))
    for name, weight in base.named_parameters(remove_duplicate=False):  # a state dict would shard them again
        words = name.split(".")
        if "base_layer" in words:
            name = ".".join(word for word in words if word != "base_layer")
            yield name, changed.pop(name, weight)
        elif not any(word.startswith("lora_") for word in words):
            yield name, weight


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
    rows = [[list(one.token_ids) for one in own.outputs] for own in outputs]
    texts = policy.processor.tokenizer.batch_decode([row for group in rows for row in group], skip_special_tokens=True)
    g = len(rows[0])
    answers = tuple(tuple(text.strip() for text in texts[i * g : (i + 1) * g]) for i in range(len(rows)))
    made = Completions.padded(rows, answers, policy.pad_id, device)
    logps = torch.zeros(made.ids.shape, dtype=torch.float32)
    for i, own in enumerate(outputs):
        for j, one in enumerate(own.outputs):
            for k, (token, found) in enumerate(zip(one.token_ids, one.logprobs, strict=True)):
                logps[i, j, k] = found[token].logprob
    return Completions(ids=made.ids, mask=made.mask, texts=made.texts, logps=logps.to(device))
