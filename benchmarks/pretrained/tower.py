"""Vision tower and connector learn to see before they meet the language model, as SigLIP has. A plain loop.

From single rendered frames, the connector's tokens and nothing but a linear layer say color, shape, place and size.
Nothing here knows of motion or of sentences. Tokens leave as loud as words are: their root mean squares are made equal.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, mse_loss

from benchmarks.pretrained.clips import COLORS, SIDE, paint
from orlaif.demo.shapes import SHAPES


def frames_and_targets(rng: random.Random, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frames u8[N, 3, SIDE, SIDE]; color and shape i64[N, 2]; place and radius in half sides f32[N, 3]."""
    frames, kinds, places = [], [], []
    for _ in range(number):
        frame = torch.full((3, SIDE, SIDE), rng.randrange(0, 50), dtype=torch.uint8)
        color, shape = rng.randrange(len(COLORS)), rng.randrange(len(SHAPES))
        x, y, radius = rng.uniform(6, SIDE - 6), rng.uniform(6, SIDE - 6), rng.uniform(3.5, 19)
        paint(frame, list(COLORS)[color], SHAPES[shape], x, y, radius)
        frames.append(frame)
        kinds.append((color, shape))
        places.append([2 * x / SIDE - 1, 2 * y / SIDE - 1, 2 * radius / SIDE])
    return torch.stack(frames), torch.tensor(kinds), torch.tensor(places)


def train(model: Any, steps: int, seed: int = 0, batch: int = 64, lr: float = 2e-3) -> dict[str, float]:
    """Train ``model``'s tower and connector in place; accuracy of color and shape, error of place, on the last batches.

    Args:
        model: a SmolVLM in float32.
        steps: of AdamW on ``batch`` new frames each.
        seed: of frames and heads.
        batch: frames.
        lr: highest learning rate; one cycle.
    """
    tower, connector = model.model.vision_model, model.model.connector
    rng = random.Random(f"tower/{seed}")
    torch.manual_seed(seed)
    tokens = tower.embeddings.num_patches // connector.scale_factor**2
    features = tokens * connector.modality_projection.proj.out_features
    heads = nn.ModuleList([nn.Linear(features, width) for width in (len(COLORS), len(SHAPES), 3)])
    parameters = [*tower.parameters(), *connector.parameters(), *heads.parameters()]
    # What reads thousands of features would jump at the tower's rate.
    wide = [*connector.parameters(), *heads.parameters()]
    rates = [{"params": tower.parameters(), "lr": lr}, {"params": wide, "lr": lr / 10}]
    optimizer = torch.optim.AdamW(rates, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[lr, lr / 10], total_steps=steps, pct_start=0.1)
    tail: list[Tensor] = []
    for step in range(steps):
        frames, kinds, places = frames_and_targets(rng, batch)
        with torch.autocast("cpu", torch.bfloat16):
            seen = connector(tower(frames.float() / 127.5 - 1).last_hidden_state).flatten(1)
        seen = layer_norm(seen.float(), (features,))
        color, shape, place = (head(seen) for head in heads)
        loss = cross_entropy(color, kinds[:, 0]) + cross_entropy(shape, kinds[:, 1]) + 4 * mse_loss(place, places)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        right = [(head.argmax(1) == kinds[:, i]).float().mean() for i, head in enumerate((color, shape))]
        tail = [*tail, torch.stack([*right, (place - places).square().mean().sqrt()])][-20:]
        if step % 25 == 24:
            print(f"tower {step + 1}/{steps}: " + ", ".join(f"{v:.3f}" for v in torch.stack(tail).mean(0)), flush=True)
    as_loud_as_words(model, frames)
    return dict(zip(("color", "shape", "place_error"), torch.stack(tail).mean(0).tolist(), strict=True))


@torch.no_grad()
def as_loud_as_words(model: Any, frames: Tensor) -> None:
    """Scale the connector so that the root mean square of its tokens for ``frames`` is that of the word embeddings."""
    seen = model.model.connector(model.model.vision_model(frames.float() / 127.5 - 1).last_hidden_state)
    words = model.get_input_embeddings().weight
    loudness = words.square().mean().sqrt() / seen.square().mean().sqrt()
    model.model.connector.modality_projection.proj.weight.mul_(loudness)
