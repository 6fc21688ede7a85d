"""The completions board for TensorBoard: frames, question, and the sampled answers with ranks and advantages."""

from __future__ import annotations

import logging

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import resize, to_pil_image
from torchvision.utils import make_grid

from orlaif.oracles import rank_groups
from orlaif.training.base import prompt_generators
from orlaif.training.rlaif import OracleRLAIF, candidate_groups
from orlaif.types import AsksQuestions, OracleError, VideoClip, VideoPrompt

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
        datamodule: AsksQuestions = trainer.datamodule  # type: ignore[attr-defined]
        questions = datamodule.questions("val")
        first = [questions[i] for i in range(min(self.num_prompts, len(questions)))]
        batch = datamodule.collator(first).batch.to(pl_module.device)
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
