"""The completions board for TensorBoard: frames, question, and the sampled answers with ranks and advantages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import resize, to_pil_image
from torchvision.utils import make_grid

from orlaif.oracles import rank_groups
from orlaif.stages import stage
from orlaif.training.base import prompt_generators
from orlaif.training.callbacks.board_text import LINE_HEIGHT, draw_lines, wrapped
from orlaif.training.callbacks.tables import table_rows, write_table
from orlaif.training.in_flight import candidate_groups
from orlaif.training.judged import of_answers
from orlaif.training.rlaif import OracleRLAIF
from orlaif.types import AsksQuestions, OracleError, Picture, Prompt, Seen, VideoClip

log = logging.getLogger(__name__)

_FRAME_HEIGHT = 96
_WIDTH, _MARGIN = 960, 6
_COLUMNS = (_MARGIN, 60, 150, 220)  # where each begins


def draw_board(
    prompt: Prompt, clip: Seen, answers: tuple[str, ...], ranks: Tensor, advantages: Tensor, lengths: Tensor
) -> Image.Image:
    """A contact sheet of the frames, the question, and a table of the answers, best first, green where reinforced.

    Args:
        prompt: what was asked.
        clip: the frames that the policy saw, or its media; at most 16 frames of each video are shown.
        answers: G texts.
        ranks: i64[G].
        advantages: f32[G].
        lengths: i64[G], tokens.

    Returns:
        An RGB image, as high as the texts need it (``board_text``).
    """
    sheet = contact_sheet(clip)
    rows = board_rows(answers, ranks, advantages, lengths)
    wide = max(sheet.width, _WIDTH)
    times = [f"{one.pts_s[0]:.2f} to {one.pts_s[-1]:.2f} s" for one in clip.items if isinstance(one, VideoClip)]
    header = [f"{prompt.id}   {', '.join(times)}".rstrip(), f"Q: {prompt.question}"]
    if prompt.answer is not None:
        header.append(f"reference: {prompt.answer}")
    head = [line for text in header for line in wrapped(text, wide - 2 * _MARGIN)]
    titles = ("rank", "advantage", "tokens", "answer")
    cells = [[wrapped(cell, wide - _MARGIN - _COLUMNS[-1]) for cell in row] for row in (titles, *rows)]
    heights = [max(map(len, row)) for row in cells]
    image = Image.new("RGB", (wide, sheet.height + LINE_HEIGHT * (len(head) + sum(heights) + 1)), "white")
    image.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(image)
    y = sheet.height + _MARGIN
    draw_lines(draw, (_MARGIN, y), head, "black")
    y += LINE_HEIGHT * len(head)
    for number, (row, height) in enumerate(zip(cells, heights, strict=True)):
        color = "gray" if number == 0 else "green" if float(rows[number - 1][1]) > 0 else "black"
        for x, lines in zip(_COLUMNS, row, strict=True):
            draw_lines(draw, (x, y), lines, color)
        y += LINE_HEIGHT * height
    return image


def contact_sheet(seen: Seen) -> Image.Image:
    """Frames and images in their order, all of one height; nothing where nothing was shown."""
    tiles: list[Tensor] = []
    for item in seen.items:
        frames = item.pixels[None] if isinstance(item, Picture) else item.frames
        picks = torch.linspace(0, len(frames) - 1, min(16, len(frames))).round().long()
        width = max(1, round(frames.shape[-1] * _FRAME_HEIGHT / frames.shape[-2]))
        tiles += resize(frames[picks].cpu(), [_FRAME_HEIGHT, width]).unbind()
    if not tiles:
        return Image.new("RGB", (0, 0))
    widest = max(tile.shape[-1] for tile in tiles)
    same = [pad(tile, (0, widest - tile.shape[-1]), value=255) for tile in tiles]
    return to_pil_image(make_grid(torch.stack(same), nrow=8, padding=2, pad_value=255))


def board_rows(
    answers: tuple[str, ...], ranks: Tensor, advantages: Tensor, lengths: Tensor
) -> list[tuple[str, str, str, str]]:
    """Rank, advantage, tokens and text of each answer, best first, unranked ones last."""
    order = sorted(range(len(answers)), key=lambda i: (int(ranks[i]) < 0, int(ranks[i])))
    return [
        (f"{int(ranks[i])}" if ranks[i] >= 0 else "-", f"{float(advantages[i]):+.3f}", f"{int(lengths[i])}", answers[i])
        for i in order
    ]


def board_text(prompt: Prompt, rows: Sequence[tuple[str, str, str, str]]) -> str:
    """Question and answers as Markdown, for what a picture is too small for."""
    reference = "" if prompt.answer is None else f"\n\nreference: {_cell(prompt.answer)}"
    lines = ["| rank | advantage | tokens | answer |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return f"Q: {_cell(prompt.question)}{reference}\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("*", "&#42;"), ("_", "&#95;"), ("`", "&#96;")):
        text = text.replace(sign, shown)
    return text.replace("\n", " ⏎ ")


class CompletionsBoard(Callback):
    """At every validation: a few fixed prompts with frames, question, and the G sampled answers, ranks and advantages.

    TensorBoard gets pictures and text, Weights & Biases, MLflow and trackio a table ``completions``.

    Args:
        num_prompts: the first so many of the validation data.
        seed: of the sampling, the same at every validation, so that boards differ by the policy alone.
    """

    def __init__(self, num_prompts: int = 4, seed: int = 0) -> None:
        self.num_prompts = num_prompts
        self.seed = seed

    @stage("completions board")
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, rank, draw, add the pictures to TensorBoard, and the same as text, or to other loggers as a table."""
        if trainer.sanity_checking or not isinstance(pl_module, OracleRLAIF):
            return
        datamodule: AsksQuestions = trainer.datamodule  # type: ignore[attr-defined]
        questions = datamodule.questions("val")
        first = [questions[i] for i in range(min(self.num_prompts, len(questions)))]
        batch = datamodule.collator(first).batch.to(pl_module.device)
        if not len(batch):
            return
        generators = prompt_generators(batch, f"board/{self.seed}", pl_module.device)
        policy = pl_module.policy if pl_module.ahead is None else pl_module.ahead.policy_now(batch)
        completions = pl_module.rollout(policy, batch, generators)  # by all, where weights are sharded
        if not trainer.is_global_zero and not pl_module.oracle.borrows_policy:
            return
        try:
            groups = candidate_groups(batch, completions, pl_module.policy.answer_format)
            ranking = rank_groups(pl_module.oracle, groups, pl_module.on_oracle_failure)
        except OracleError as error:
            log.warning("no completions board this time: %s", error)
            return
        advantages = of_answers(pl_module.advantages(ranking, completions), completions)
        table: list[list[Any]] = []
        for i, (prompt, clip) in enumerate(zip(batch.prompts, batch.clips, strict=True)):
            board = draw_board(
                prompt, clip, completions.texts[i], ranking.ranks[i], advantages[i], completions.lengths[i].cpu()
            )
            pixels = torch.frombuffer(bytearray(board.tobytes()), dtype=torch.uint8).view(board.height, board.width, 3)
            rows = board_rows(completions.texts[i], ranking.ranks[i], advantages[i], completions.lengths[i].cpu())
            table += table_rows(trainer.global_step, prompt, rows)
            for logger in trainer.loggers:
                if hasattr(logger, "experiment") and hasattr(logger.experiment, "add_image"):
                    name, step = f"completions/{prompt.id}", trainer.global_step
                    logger.experiment.add_image(name, pixels, step, dataformats="HWC")
                    logger.experiment.add_text(name, board_text(prompt, rows), step)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            write_table(logger, "completions", table, trainer.global_step)
