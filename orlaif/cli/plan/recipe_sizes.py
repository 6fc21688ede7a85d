"""From a recipe to the sizes of its step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from orlaif.cli.plan.layers import layers_of
from orlaif.cli.plan.meta import eyes
from orlaif.cli.plan.processes import may_share, strategy_of
from orlaif.cli.plan.sizes import Setup, bytes_of
from orlaif.cli.plan.tower import main_part
from orlaif.data.datamodule import VideoDataModule
from orlaif.policy import Policy
from orlaif.policy.asking import base_of
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.training.base import PolicyModule
from orlaif.training.ranker import ListwiseRankerTraining, PreferenceRankerTraining
from orlaif.training.rlaif import OracleRLAIF
from orlaif.types import PromptBatch, VideoClip, VideoError, VideoPrompt


class UnknownTokensError(ValueError):
    """Nothing tells what a clip becomes."""


def prompt_sizes(
    policy: Policy, data: VideoDataModule, height: int, width: int, seconds: float, given: int | None
) -> tuple[tuple[int, int, int, int], float, list[str]]:
    """What a clip becomes where its tokens may be given.

    Args:
        policy: whose processor or config tells.
        data: of the recipe.
        height: of a typical video.
        width: of it.
        seconds: of it.
        given: tokens that its prompt has instead.

    Returns:
        As :func:`video_tokens` has them, patches in proportion to the tokens; how much longer the clip is than the
        typical one; and what is not counted, where nothing tells patches.

    Raises:
        ValueError: as :func:`video_tokens`, without tokens that are given.
    """
    try:
        found, patches, each, beside = video_tokens(policy, data, height, width, seconds)
    except (ValueError, VideoError) as error:
        if given is not None:
            return (given, 0, 0, 0), 1.0, [f"not counted: vision tower, pixels, for {error}"]
        if isinstance(error, UnknownTokensError):
            raise UnknownTokensError(f"--prompt-tokens is missing: {error}") from error
        raise
    if given is None:
        return (found, patches, each, beside), 1.0, []
    return (given, -(-patches * given // found), each, -(-beside * given // found)), given / found, []


def video_tokens(
    policy: Policy, data: VideoDataModule, height: int, width: int, seconds: float
) -> tuple[int, int, int, int]:
    """What a clip becomes: tokens of the prompt, patches, values of a patch, and bytes beside these.

    By the checkpoint's own processor; where there is none beside the config, by the arithmetic of the Qwen family.

    Raises:
        ValueError: neither knows it.
    """
    times = data.sampling.times(0.0, seconds)
    if data.budget is not None:
        height, width = data.budget.size(height, width, len(times))
    try:
        processor = policy.processor
    except (OSError, ValueError):
        return _qwen_tokens(policy.config, len(times), height, width)
    frames = torch.zeros(len(times), 3, height, width, dtype=torch.uint8)
    pts_s = torch.as_tensor(times, dtype=torch.float64)
    clip = VideoClip(frames=frames, pts_s=pts_s, duration_s=seconds, path="a typical video")
    prompt = VideoPrompt(id="a typical prompt", video="a typical video", question="?")
    batch = ProcessorEncoder(processor, family=policy.family)([prompt], [clip])
    return batch.input_ids.shape[1], *patches_of(policy, batch)


def patches_of(policy: Policy, batch: PromptBatch) -> tuple[int, int, int]:
    """Patches of a batch, values of a patch, and bytes of what else the processor made of the videos."""
    inputs = [(name, x) for value in batch.mm_inputs.items() for name, x in _named(*value)]
    pixels = [x for name, x in inputs if "pixel" in name and x.is_floating_point()]
    others = bytes_of([x for _, x in inputs]) - bytes_of(pixels)
    each = patch_values(policy)
    return -(-sum(x.numel() for x in pixels) // each), each, others


def _named(name: str, value: Any) -> list[tuple[str, torch.Tensor]]:
    values = value if isinstance(value, list) else [value]
    return [(name, one) for one in values if isinstance(one, torch.Tensor)]


def in_grids(policy: Policy) -> bool:
    """Whether the model's features of a video are made from frames in grids, by which its tower can be divided."""
    with torch.device("meta"):
        model = base_of(policy.family.build(policy.config))
    encoder = getattr(getattr(model, "model", model), "get_video_features", None)
    return encoder is not None and "video_grid_thw" in inspect.signature(encoder).parameters


def patch_values(policy: Policy) -> int:
    """Numbers that make up one patch of the vision tower: what its first layer is given at once."""
    with torch.device("meta"):
        model = policy.family.build(policy.config)
    tower = main_part(eyes(policy, model))
    inside = {id(part) for layer in layers_of(tower) for part in layer.modules()}
    parts = [*(part for part in tower.modules() if id(part) not in inside), *tower.modules()]
    embeddings = [part for part in parts if isinstance(part, (nn.Conv2d, nn.Conv3d)) and id(part) not in inside]
    first = [*embeddings, *(part for part in parts if isinstance(part, nn.Linear))][0]
    return first.weight[0].numel()


def _qwen_tokens(config: Any, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    vision = getattr(config, "vision_config", None)
    if vision is None or not hasattr(vision, "spatial_merge_size"):
        raise UnknownTokensError(
            f"there is no processor beside the config that tells how many tokens a clip "
            f"has, and without one it is known for the Qwen family alone; this is {config.model_type}"
        )
    patch, merge, time = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    grid = [max(1, round(side / (patch * merge))) * merge for side in (height, width)]
    patches = -(-frames // time) * grid[0] * grid[1]
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    return patches // merge**2, patches, channels * time * patch**2, 0


def setup_of(
    module: PolicyModule,
    data: VideoDataModule,
    trainer: Any,
    gpus: int,
    tokens: tuple[int, int, int, int],
    text_tokens: int,
    answer_tokens: int,
    answers: int = 2,
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
        answers: of a group that a ranker learns from.
    """
    sharers = module.processes_per_prompt
    video, patches, pixels, beside = tokens
    common: dict[str, Any] = {
        "gpus": gpus,
        "strategy": strategy_of(trainer, gpus, module.policy),
        "prompts": data.batch_size,
        "prompt_tokens": video + text_tokens,
        "patches": patches * data.batch_size,
        "pixels": pixels,
        "beside_pixels": beside * data.batch_size,
        "sharers": sharers,
        "tower_sharers": sharers if sharers > 1 and in_grids(module.policy) else 1,
        # With an encoder of the recipe's own the first process samples for all.
        "samplers": sharers if data.encoder is None and data.processor is None else 1,
        "may_share": may_share(module),
        "accumulate": int(trainer.get("accumulate_grad_batches") or 1),
    }
    if isinstance(module, OracleRLAIF):
        group = module.rollout.group_size
        own = -(-group // sharers)
        loss = "fused_head" if module.loss.fused_head else "logits"
        if loss == "logits" and module.loss.implementation != "torch":
            loss = "inplace"
        return Setup(
            **common,
            group_size=group,
            part=min(own, module.microbatch or own),
            completion_tokens=module.rollout.sampling.max_new_tokens,
            num_updates=module.num_updates,
            reference=bool(module.loss.kl_coef),
            refresh=module.reference.refresh == "epoch",
            loss=loss,
            temperature=module.rollout.sampling.temperature,
            max_batches=0 if module.gathering is None else module.gathering.settings.max_batches,
        )
    ranker = isinstance(module, PreferenceRankerTraining)
    if isinstance(module, ListwiseRankerTraining):
        row = answers * answer_tokens
        return Setup(**common, completion_tokens=row, answers_in_row=answers, rollout=False, loss="none")
    group = answers if ranker else 1
    loss = "none" if ranker else "triton"
    common["completion_tokens"] = answer_tokens
    return Setup(**common, group_size=group, part=group, rollout=False, loss=loss)
