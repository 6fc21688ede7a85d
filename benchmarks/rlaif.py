"""Ten steps of Oracle-RLAIF on a model of real size with random weights: seconds per stage, and peak memory as planned.

    python -m benchmarks.rlaif --size 3b --output benchmarks/results/rlaif_3b.json         (one GPU)
    python -m benchmarks.rlaif --size tiny                                                 (any machine)

Qwen2.5-VL from its config, LoRA on the decoder, 32 frames. Batches are made before, not decoded
(``benchmarks/decode.py`` times that), answers are as random as the weights and so of full length, and the oracle is the
random one. On a GPU the peak is ``torch.cuda.max_memory_allocated``; on a CPU all live tensors are counted, as the plan
does on the meta device.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from benchmarks.harness import about
from orlaif import OracleRLAIF
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.cli.plan.sizes import Setup
from orlaif.data.datamodule import VideoDataModule
from orlaif.data.loader import Sealed
from orlaif.losses import GRPORankLoss
from orlaif.oracles import RandomOracle
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import Rollout, SamplingParams
from orlaif.tiny import CHAT_TEMPLATE, tiny_tokenizer
from orlaif.types import Delivery, PromptBatch, VideoClip, VideoPrompt

#: Text and vision configs that differ from one size to the other.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": (
        {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 8192,
        },
        {"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "fullatt_block_indexes": [3]},
    ),
    "3b": (
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
}


def write_model(folder: str, size: str, device: str) -> None:
    """A Qwen2.5-VL of this size with random weights in bfloat16, and a processor with the published patch sizes."""
    text, vision = SIZES[size]
    tokenizer = tiny_tokenizer(["what", "is", "this"])
    patches: dict[str, Any] = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    limits = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, size=limits),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**patches, size=limits),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    ids: Any = tokenizer.convert_tokens_to_ids
    head = text["hidden_size"] // text["num_attention_heads"]
    sections = [head // 8, 3 * head // 16, head // 2 - head // 8 - 3 * head // 16]
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
            "bos_token_id": None,
        },
        vision_config={**vision, "patch_size": 14, "window_size": 112, "out_hidden_size": text["hidden_size"]},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    model.save_pretrained(folder)


class MadeFrames(LightningDataModule):
    """Batches of prompts about clips of noise, new ones at each step.

    Args:
        policy: whose processor is used.
        steps: batches.
        batch_size: P.
        frames: of a clip.
        height: of a frame.
        width: of a frame.
    """

    def __init__(self, policy: Policy, steps: int, batch_size: int, frames: int, height: int, width: int) -> None:
        super().__init__()
        self.policy, self.shape = policy, (frames, 3, height, width)
        self.batch_size = batch_size
        self.batches = [self.batch(step) for step in range(steps)]

    def batch(self, step: int) -> PromptBatch:
        """The batch of a step."""
        generator = torch.Generator().manual_seed(step)
        times = torch.arange(self.shape[0], dtype=torch.float64) / 2
        clips = [
            VideoClip(
                frames=torch.randint(0, 256, self.shape, generator=generator, dtype=torch.uint8),
                pts_s=times,
                duration_s=self.shape[0] / 2,
                path="made",
            )
            for _ in range(self.batch_size)
        ]
        prompts = [VideoPrompt(id=f"{step}-{i}", video="made", question="what is this") for i in range(self.batch_size)]
        return ProcessorEncoder(self.policy.processor)(prompts, clips)

    def train_dataloader(self) -> DataLoader[PromptBatch]:
        """All batches."""
        batches: Any = [Delivery(batch=batch) for batch in self.batches]
        seal: Any = Sealed
        return DataLoader(batches, batch_size=None, collate_fn=seal)

    on_before_batch_transfer = VideoDataModule.on_before_batch_transfer

    def _count(self, batch: PromptBatch) -> PromptBatch:
        return batch


class Stages(Callback):
    """Seconds per stage of every step, and the peak of memory."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.seconds: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep them."""
        names = [name for name in trainer.callback_metrics if name.startswith("time/") and "share" not in name]
        self.seconds.append({name[5:]: float(trainer.callback_metrics[name]) for name in names})


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="3b")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--height", type=int, default=336)
    parser.add_argument("--width", type=int, default=588)
    parser.add_argument("--output")
    a = parser.parse_args()
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, a.size, "cuda" if cuda else "cpu")
        if cuda:
            torch.cuda.empty_cache()
        lora = {"r": 64, "lora_alpha": 128, "target_modules": "all-linear"}
        settings: dict[str, Any] = {"dtype": "bfloat16", "lora": lora, "freeze_vision": True}
        settings |= {"gradient_checkpointing": True, "prefix_attention": "split"}
        policy = Policy(folder, **settings)
        module = OracleRLAIF(
            policy,
            RandomOracle(),
            rollout=Rollout(a.group, SamplingParams(max_new_tokens=a.tokens)),
            loss=GRPORankLoss(kl_coef=0.02, fused_head=True),
            order_consistency_every_n_steps=0,
            seed=0,
        )
        data = MadeFrames(policy, a.steps, a.batch, a.frames, a.height, a.width)
        first = data.batches[0]
        pixels = first.mm_inputs["pixel_values_videos"]
        setup = Setup(
            prompts=a.batch,
            group_size=a.group,
            part=a.group,
            prompt_tokens=first.input_ids.shape[1],
            completion_tokens=a.tokens,
            patches=pixels.shape[0],
            pixels=pixels.shape[1],
            reference=True,
            loss="fused_head",
            host_overhead=0,
        )
        plan = Estimate(policy, module.optimizer).plan(setup)
        stages = Stages(cuda)
        trainer = Trainer(
            accelerator="gpu" if cuda else "cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[stages],
        )
        if cuda:
            trainer.fit(module, data)
            peak = torch.cuda.max_memory_allocated()
        else:
            policy.load()
            weights = sum(p.numel() * p.element_size() for p in policy.network.parameters())
            with LiveBytes([*policy.network.parameters(), *policy.network.buffers()]) as live:
                trainer.fit(module, data)
            # On a GPU a batch's pixels are a copy; here they are the loader's, made before.
            peak = live.peak + weights + pixels.numel() * pixels.element_size()
    print(plan.table())
    print(f"measured {peak / 1e9:.3f} GB, planned {plan.total / 1e9:.3f} GB: {plan.total / peak - 1:+.1%}")
    medians = {name: statistics.median(step[name] for step in stages.seconds[1:]) for name in stages.seconds[-1]}
    print("seconds, medians without the first step:", {name: round(value, 4) for name, value in medians.items()})
    report = {
        "about": about(cuda),
        "arguments": vars(a),
        "prompt_tokens": setup.prompt_tokens,
        "tokens_per_step": setup.tokens_per_step,
        "seconds": stages.seconds,
        "medians": medians,
        "peak_bytes": peak,
        "planned_bytes": plan.total,
        "plan": {"standing": plan.standing, "phases": plan.phases},
    }
    if a.output:
        os.makedirs(os.path.dirname(a.output) or ".", exist_ok=True)
        with open(a.output, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
