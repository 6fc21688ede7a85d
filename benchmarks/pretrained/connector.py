"""The connector learns words of the language model, which stays as it is, before both learn sentences. A plain loop.

A frame's token has to say, by the tied head alone, what is seen: color, shape, where across, where along, how large.
Each is a choice among words of the language model's own table of embeddings, which is not trained; nor is the tower.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from benchmarks.pretrained.clips import COLORS
from benchmarks.pretrained.tower import as_loud_as_words, frames_and_targets
from orlaif.demo.shapes import SHAPES

#: What a token says, and the words among which it chooses.
SAID: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": tuple(SHAPES),
    "across": ("left", "middle", "right"),
    "along": ("up", "middle", "down"),
    "size": ("small", "medium", "big"),
}
#: Where the middle ends, in half sides from the centre; and where small and medium do, as radius in half sides.
MIDDLE, SIZES = 0.25, (0.19, 0.38)


def choices(kinds: Tensor, places: Tensor) -> dict[str, Tensor]:
    """Indices i64[N] into the words of :data:`SAID`.

    Args:
        kinds: i64[N, 2], of color and shape.
        places: f32[N, 3], x, y and radius in half sides, of which x and y count from the centre, right and down.
    """
    edges = torch.tensor([-MIDDLE, MIDDLE])
    return {
        "color": kinds[:, 0],
        "shape": kinds[:, 1],
        "across": torch.bucketize(places[:, 0].contiguous(), edges),
        "along": torch.bucketize(places[:, 1].contiguous(), edges),
        "size": torch.bucketize(places[:, 2].contiguous(), torch.tensor(SIZES)),
    }


def train(model: Any, tokenizer: Any, steps: int, seed: int = 0, batch: int = 64, lr: float = 1e-3) -> dict[str, float]:
    """Train ``model``'s connector in place; the share of right words, of each kind, on the last batches.

    Args:
        model: a SmolVLM in float32 whose tower sees.
        tokenizer: its own; each word is one token of it.
        steps: of AdamW on ``batch`` new frames each.
        seed: of frames.
        batch: frames.
        lr: highest learning rate; one cycle.
    """
    tower, connector, table = model.model.vision_model, model.model.connector, model.get_input_embeddings().weight
    width = table.shape[1]
    ids = {kind: [tokenizer.encode(f" {word}") for word in words] for kind, words in SAID.items()}
    words = {kind: layer_norm(table.detach()[torch.tensor(one)[:, 0]], (width,)) for kind, one in ids.items()}
    rng = random.Random(f"connector/{seed}")
    optimizer = torch.optim.AdamW(connector.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    tail: list[Tensor] = []
    for step in range(steps):
        frames, kinds, places = frames_and_targets(rng, batch)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            patches = tower(frames.float() / 127.5 - 1).last_hidden_state
        seen = layer_norm(connector(patches.float()).mean(1), (width,))
        true = choices(kinds, places)
        logits = {kind: seen @ rows.T / width**0.5 for kind, rows in words.items()}
        loss = torch.stack([cross_entropy(logits[kind], true[kind]) for kind in SAID]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right = [(logits[kind].argmax(1) == true[kind]).float().mean() for kind in SAID]
        tail = [*tail, torch.stack(right)][-20:]
        if step % 25 == 24:
            print(
                f"connector {step + 1}/{steps}: " + ", ".join(f"{v:.3f}" for v in torch.stack(tail).mean(0)), flush=True
            )
    as_loud_as_words(model, frames)
    return dict(zip(SAID, torch.stack(tail).mean(0).tolist(), strict=True))
