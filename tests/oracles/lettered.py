"""A tiny video-language model that can be a judge: its tokenizer knows the letters of a ballot."""

from __future__ import annotations

from orlaif.demo.shapes import words
from orlaif.demo.tiny import make_tiny_model


def make_lettered_model(folder: str, seed: int) -> str:
    """Write a tiny Qwen3-VL to ``folder``, which is returned.

    Its tokens are the demo's words, bare and in quotes (as candidates stand in a ballot), and the letters A to H.
    """
    quoted = [f'"{word}"' for word in words()]
    make_tiny_model(folder, [*words(), *quoted, *"ABCDEFGH"], hidden_size=32, num_layers=2, seed=seed)
    return folder
