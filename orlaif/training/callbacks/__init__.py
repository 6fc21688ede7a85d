"""Callbacks: the completions board for TensorBoard, the Hugging Face export, checkpoints, and stopping by a signal."""

from orlaif.training.callbacks.board import CompletionsBoard, draw_board
from orlaif.training.callbacks.checkpointing import Checkpointing
from orlaif.training.callbacks.export import ExportHuggingFace
from orlaif.training.callbacks.stopping import StopSignals

__all__ = ["Checkpointing", "CompletionsBoard", "ExportHuggingFace", "StopSignals", "draw_board"]
