"""Policies around models of published sizes, the prompts that they are asked, and random answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.notebook import Notebook
from benchmarks.made_frames import MadeFrames
from benchmarks.models import kept_model
from orlaif.policy import Policy
from orlaif.types import Completions, PromptBatch

#: (frames, height, width) of a clip, by how much of a prompt it makes.
CLIPS = {"long": (32, 336, 588), "short": (8, 336, 588), "least": (4, 64, 64)}


def policy_of(size: str, notebook: Notebook, **settings: Any) -> Policy:
    """A loaded policy on the device; bfloat16 on a GPU, float32 in a rehearsal.

    Args:
        size: of the model (``benchmarks.models``).
        notebook: of the part.
        settings: of :class:`~orlaif.policy.Policy`.
    """
    dtype = "bfloat16" if notebook.cuda else "float32"
    policy = Policy(kept_model(size, notebook.device), dtype=dtype, prefix="shared", **settings).load()
    policy.network.to(notebook.device)
    return policy


def prompts(policy: Policy, clip: str, number: int, device: str) -> PromptBatch:
    """A batch of ``number`` prompts about clips of that kind, on the device."""
    return MadeFrames(policy, 1, number, *CLIPS[clip]).batches[0].to(device)


def answers(policy: Policy, batch: PromptBatch, group: int, tokens: int) -> Completions:
    """Random tokens, all answers of full length."""
    generator = torch.Generator().manual_seed(1)
    known = [i for i in range(len(policy.processor.tokenizer)) if i not in policy.placeholder_ids]
    drawn = torch.randint(len(known), (len(batch), group, tokens), generator=generator)
    ids = torch.tensor(known)[drawn].to(batch.input_ids.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Completions(ids=ids, mask=mask, texts=tuple(("",) * group for _ in range(len(batch))))


def lay_out(policy: Policy, name: str) -> None:
    """Let groups go through the model by ``name``: ``duplicate``, or ``shared`` on the attention of that name."""
    assert policy.choice is not None
    if name == "duplicate":
        policy.choice = replace(policy.choice, layout="duplicate", attentions=(), shares_cache=False)
    else:
        policy.choice = replace(policy.choice, layout="shared", attentions=(name,), shares_cache=True)
