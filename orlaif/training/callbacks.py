"""Callbacks: the completions board for TensorBoard, the Hugging Face export, and checkpoints to go on from."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image
from torchvision.utils import make_grid

from orlaif.distributed.checkpoint_io import clear_unfinished, is_sharded_checkpoint
from orlaif.distributed.fsdp2 import FSDP2Strategy
from orlaif.oracles import rank_groups
from orlaif.training.base import prompt_generators
from orlaif.training.rlaif import OracleRLAIF, candidate_groups
from orlaif.types import OracleError, VideoClip, VideoPrompt

log = logging.getLogger(__name__)

_LINE = 20
_FRAME_HEIGHT = 96


def draw_board(
    prompt: VideoPrompt, clip: VideoClip, answers: tuple[str, ...], ranks: Tensor, advantages: Tensor, lengths: Tensor
) -> Image.Image:
    """A contact sheet of the frames, the question, and a table of the answers, best first, green where reinforced.

    Args:
        prompt: what was asked.
        clip: the frames that the policy saw; at most 16 of them are shown.
        answers: G texts.
        ranks: i64[G].
        advantages: f32[G].
        lengths: i64[G], tokens.

    Returns:
        An RGB image.
    """
    picks = torch.linspace(0, len(clip.frames) - 1, min(16, len(clip.frames))).round().long()
    width = max(1, round(clip.frames.shape[-1] * _FRAME_HEIGHT / clip.frames.shape[-2]))
    frames = resize(clip.frames[picks].cpu(), [_FRAME_HEIGHT, width])
    sheet = to_pil_image(make_grid(frames, nrow=8, padding=2, pad_value=255))
    font = ImageFont.load_default(size=14)
    rows = [
        (f"{rank}" if rank >= 0 else "-", f"{advantage:+.3f}", f"{length}", text)
        for rank, advantage, length, text in zip(
            ranks.tolist(), advantages.tolist(), lengths.tolist(), answers, strict=True
        )
    ]
    rows.sort(key=lambda row: (row[0] == "-", int(row[0]) if row[0] != "-" else 0))
    header = [f"{prompt.id}   {clip.pts_s[0]:.2f} to {clip.pts_s[-1]:.2f} s", f"Q: {prompt.question}"]
    if prompt.answer is not None:
        header.append(f"reference: {prompt.answer}")
    image = Image.new("RGB", (max(sheet.width, 640), sheet.height + _LINE * (len(header) + len(rows) + 2)), "white")
    image.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(image)
    y = sheet.height + 6
    for line in header:
        draw.text((6, y), line, fill="black", font=font)
        y += _LINE
    for number, row in enumerate([("rank", "advantage", "tokens", "answer"), *rows]):
        color = "gray" if number == 0 else "green" if float(row[1]) > 0 else "black"
        for x, cell in zip((6, 60, 150, 220), row, strict=True):
            draw.text((x, y), cell.replace("\n", " ")[:120], fill=color, font=font)
        y += _LINE
    return image


class CompletionsBoard(Callback):
    """At every validation: a few fixed prompts with frames, question, and the G sampled answers, ranks and advantages.

    Args:
        num_prompts: the first so many of the validation data.
        seed: of the sampling, the same at every validation, so that boards differ by the policy alone.
    """

    def __init__(self, num_prompts: int = 4, seed: int = 0) -> None:
        self.num_prompts = num_prompts
        self.seed = seed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, rank, draw, and add the pictures to TensorBoard."""
        if trainer.sanity_checking or not isinstance(pl_module, OracleRLAIF):
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        dataset = datamodule.datasets["val"]
        batch = datamodule.collator([dataset[i] for i in range(min(self.num_prompts, len(dataset)))]).to(
            pl_module.device
        )
        if not len(batch):
            return
        generators = prompt_generators(batch, f"board/{self.seed}", pl_module.device)
        completions = pl_module.rollout(pl_module.policy, batch, generators)  # by all, where weights are sharded
        if not trainer.is_global_zero and not pl_module.oracle.borrows_policy:
            return
        try:
            ranking = rank_groups(pl_module.oracle, candidate_groups(batch, completions), pl_module.on_oracle_failure)
        except OracleError as error:
            log.warning("no completions board this time: %s", error)
            return
        advantages = pl_module.advantage(ranking, completions)
        for i, (prompt, clip) in enumerate(zip(batch.prompts, batch.clips, strict=True)):
            board = draw_board(
                prompt, clip, completions.texts[i], ranking.ranks[i], advantages[i], completions.lengths[i].cpu()
            )
            pixels = torch.frombuffer(bytearray(board.tobytes()), dtype=torch.uint8).view(board.height, board.width, 3)
            for logger in trainer.loggers:
                if hasattr(logger, "experiment") and hasattr(logger.experiment, "add_image"):
                    logger.experiment.add_image(
                        f"completions/{prompt.id}", pixels, trainer.global_step, dataformats="HWC"
                    )


class ExportHuggingFace(Callback):
    """At the end of training, write the policy (or the ranker) for the rest of the ecosystem.

    Args:
        dirpath: folder; by default ``<run_dir>/export``.
        merge: with LoRA, a whole model with the adapter merged into it, instead of an adapter.
    """

    def __init__(self, dirpath: str | None = None, merge: bool = False) -> None:
        self.dirpath, self.merge = dirpath, merge

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; where weights are sharded all processes take part, and process 0 writes."""
        policy = getattr(pl_module, "policy", None)
        if trainer.is_global_zero or getattr(policy, "is_sharded", False):
            folder = self.dirpath or os.path.join(trainer.default_root_dir, "export")
            pl_module.export(folder, merge=self.merge)  # type: ignore[operator]


class Checkpointing(ModelCheckpoint):
    """Lightning's ModelCheckpoint, safe against being killed at any moment.

    A checkpoint has its name only when it is complete, and the one before is deleted only then. ``--ckpt_path last``
    goes on from the newest; where there is none yet it starts from the beginning, so that a job that is queued again
    can always use it.

    Args:
        every_n_train_steps: how often to save, in steps of the optimizer, and after the last of ``max_steps``; None: at
            the end of each epoch.
        save_top_k: how many to keep: the newest, or the best by ``monitor``; -1 keeps all.
        kwargs: of ModelCheckpoint.
    """

    def __init__(self, every_n_train_steps: int | None = None, save_top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(every_n_train_steps=every_n_train_steps, save_top_k=save_top_k, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear away what a killed run left unfinished."""
        if isinstance(trainer.strategy, ModelParallelStrategy) and not isinstance(trainer.strategy, FSDP2Strategy):
            raise ValueError(
                "trainer.strategy is ModelParallelStrategy; use orlaif.distributed.fsdp2.FSDP2Strategy ('fsdp2')"
            )
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None:
            clear_unfinished(Path(self.dirpath))

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save where it is time, and after the last of ``max_steps``."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        ends = trainer.global_step == trainer.max_steps
        if ends and self._every_n_train_steps and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """As Lightning has it, but also the one that this run went on from: resumed often, a run would fill a disk."""
        own = self.dirpath is not None and Path(self.dirpath).absolute() in Path(previous).absolute().parents
        return own and previous != current

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """The complete checkpoint with the most steps; what Lightning takes ``last`` to be."""
        folder = Path(self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints"))
        found = [path for path in folder.glob("*.ckpt") if path.is_file() or is_sharded_checkpoint(path)]
        return {str(max(found, key=_age))} if found else set()


def _age(path: Path) -> tuple[int, float]:
    """Steps by the name, else by the clock."""
    steps = re.search(r"step=(\d+)", path.name)
    return int(steps[1]) if steps else -1, path.stat().st_mtime
