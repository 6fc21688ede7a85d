"""Callbacks: the board for TensorBoard, samples kept, export, checkpoints, stopping, win rate, progress."""

from orlaif.training.callbacks.board import CompletionsBoard, draw_board
from orlaif.training.callbacks.checkpointing import Checkpointing
from orlaif.training.callbacks.export import ExportHuggingFace
from orlaif.training.callbacks.greedy_rank import GreedyRank
from orlaif.training.callbacks.progress import Progress
from orlaif.training.callbacks.samples import KeepSamples
from orlaif.training.callbacks.stopping import StopSignals
from orlaif.training.callbacks.win_rate import WinRate

__all__ = [
    "Checkpointing",
    "CompletionsBoard",
    "ExportHuggingFace",
    "GreedyRank",
    "KeepSamples",
    "Progress",
    "StopSignals",
    "WinRate",
    "draw_board",
]
