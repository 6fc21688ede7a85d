"""Callbacks: the completions board for TensorBoard, the Hugging Face export, and checkpoints to go on from."""

from orlaif.training.callbacks.board import CompletionsBoard, draw_board
from orlaif.training.callbacks.checkpointing import Checkpointing
from orlaif.training.callbacks.export import ExportHuggingFace

__all__ = ["Checkpointing", "CompletionsBoard", "ExportHuggingFace", "draw_board"]
