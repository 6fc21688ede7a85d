"""The model behind the paper's oracle: a video-language model with a scalar head on its last hidden state.

``Ranker`` reads each answer behind the prompt as if it were alone; ``ListwiseRanker`` reads a group as one row, the
answers one after another behind the prompt, so that an answer is scored in sight of those before it (the idea of the
ranking reward model of RLRR, arXiv 2601.23058, whose order is generated as text; here it is read from scores). Either
way the video is paid once per group.

Who comes first sees least. So ``ListwiseRanker`` is trained in a newly drawn order each time, and used in one order and
its reverse, over which scores are averaged: then of any two answers each has been read in sight of the other.

Shapes: P groups, G answers, T tokens, H hidden size.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orlaif.distributed.sync import process_index
from orlaif.evaluation.quoting import special_tokens, without_tokens
from orlaif.policy import Policy
from orlaif.policy.context import context_limit
from orlaif.policy.ending import answer_ids
from orlaif.policy.export import check_export, published, write_policy
from orlaif.types import Completions, PromptBatch

HEAD_FILE, ABOUT_FILE = "ranker_head.safetensors", "ranker.json"
#: An order of the places of a group's answers.
Order = Sequence[int]


class Ranker(nn.Module):
    """A video-language model with a scalar head that scores each answer by itself.

    Attributes:
        kind: what an exported folder says it is.

    Args:
        policy: the backbone; its LM head is not used.
        head: f32 weights of the scalar head, by default random ones.
        system_prompt: goes before every question, if given.
    """

    kind = "pairwise"

    def __init__(self, policy: Policy, head: nn.Linear | None = None, system_prompt: str | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.head = head
        self.system_prompt = system_prompt

    def load(self) -> Ranker:
        """Load the backbone and make the head, if that has not been done; returns self."""
        self.policy.load()
        if self.head is None:
            size = self.policy.config.get_text_config(decoder=True).hidden_size
            self.head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
            nn.init.normal_(self.head.weight, std=size**-0.5)
        return self

    def forward(self, batch: PromptBatch, answers: Sequence[Sequence[str]]) -> Tensor:
        """Scores f32[P, G] of each prompt's answers; NaN where a prompt has fewer than the one with the most."""
        assert self.head is not None
        completions, real = answer_completions(self.policy, answers, batch.input_ids.device)
        hidden, _ = self.policy.completion_hidden(batch, completions)
        # The place that predicts what would follow the end of the answer.
        last = (completions.lengths - 1).flatten()
        read = hidden[torch.arange(len(hidden), device=hidden.device), last]
        scores = self.head(read.to(self.head.weight.dtype)).view(completions.ids.shape[:2])
        return scores.masked_fill(~real, torch.nan)

    def export(self, folder: str) -> None:
        """Write a folder for :class:`PreferenceRanker`: a Hugging Face model (an adapter merged) and the head.

        All processes must call it where the weights are sharded; process 0 writes.
        """
        assert self.head is not None
        check_export(self.policy, folder, merge=True)
        with published(folder) as part:
            write_policy(self.policy, part, merge=True)
            weight = self.head.weight.detach()
            weight = weight.full_tensor() if isinstance(weight, DTensor) else weight
            if process_index() > 0:
                return
            save_file({"weight": weight.cpu().contiguous()}, os.path.join(part, HEAD_FILE))
            with open(os.path.join(part, ABOUT_FILE), "w", encoding="utf-8") as file:
                json.dump({"system_prompt": self.system_prompt, "kind": self.kind}, file)


class ListwiseRanker(Ranker):
    """A video-language model with a scalar head that scores the answers of a group in sight of each other.

    Args:
        policy: the backbone; its LM head is not used.
        head: f32 weights of the scalar head, by default random ones.
        system_prompt: goes before every question, if given.
        num_orders: orders in which a group is read where none is given; each pass pays the video once.
    """

    kind = "listwise"

    def __init__(
        self, policy: Policy, head: nn.Linear | None = None, system_prompt: str | None = None, num_orders: int = 2
    ) -> None:
        super().__init__(policy, head, system_prompt)
        self.num_orders = num_orders

    def forward(
        self, batch: PromptBatch, answers: Sequence[Sequence[str]], orders: Sequence[Sequence[Order]] | None = None
    ) -> Tensor:
        """Scores f32[P, G] of each prompt's answers, of mean 0 in a group; NaN where a prompt has fewer than the most.

        Args:
            batch: P prompts.
            answers: of each.
            orders: one or more orders of each group's answers, equally many; by default ``num_orders`` drawn ones.
        """
        if orders is None:
            orders = [
                drawn_orders(len(members), self.num_orders, prompt.id)
                for prompt, members in zip(batch.prompts, answers, strict=True)
            ]
        passes = [self._read(batch, answers, one) for one in zip(*orders, strict=True)]
        return torch.stack(passes).mean(0)

    def _read(self, batch: PromptBatch, answers: Sequence[Sequence[str]], orders: Sequence[Order]) -> Tensor:
        """Scores f32[P, G] from one pass, each group in its order; centred, since only differences mean anything."""
        assert self.head is not None
        completions, ends = row_completions(self.policy, answers, orders, batch.input_ids.device)
        check_rows(self.policy, batch, completions, answers)
        hidden, _ = self.policy.completion_hidden(batch, completions)
        read = hidden[torch.arange(len(hidden), device=hidden.device)[:, None], ends.clamp(min=0)]
        scores = self.head(read.to(self.head.weight.dtype)).squeeze(-1)
        real = ends >= 0
        mean = (scores * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
        return (scores - mean).masked_fill(~real, torch.nan)


def load_ranker(folder: str, num_orders: int | None = None, **settings: Any) -> Ranker:
    """The ranker of a folder that :meth:`Ranker.export` wrote.

    Args:
        folder: the folder.
        num_orders: of a listwise one; by default 2.
        settings: of the policy.

    Raises:
        ValueError: another folder, or ``num_orders`` for a ranker that reads every answer alone.
    """
    path = os.path.join(folder, HEAD_FILE)
    if not os.path.exists(path):
        raise ValueError(f"{folder} has no {HEAD_FILE}: it is no ranker that orlaif trained")
    with open(os.path.join(folder, ABOUT_FILE), encoding="utf-8") as file:
        about = json.load(file)
    kind = about.get("kind", Ranker.kind)  # folders of before there were two kinds do not say
    if kind not in (Ranker.kind, ListwiseRanker.kind):
        raise ValueError(f"{folder}: {ABOUT_FILE} has kind {kind!r}; it must be 'pairwise' or 'listwise'")
    if kind == Ranker.kind and num_orders is not None:
        raise ValueError(f"oracle.num_orders is {num_orders}; {folder} is a pairwise ranker, which reads answers alone")
    weight = load_file(path)["weight"]
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
    head.load_state_dict({"weight": weight})
    policy, prompt = Policy(folder, **settings), about["system_prompt"]
    if kind == Ranker.kind:
        return Ranker(policy, head, prompt).load()
    return ListwiseRanker(policy, head, prompt, num_orders or 2).load()


def drawn_orders(size: int, number: int, key: str) -> list[list[int]]:
    """``number`` orders of ``size`` places, the same ones whenever ``key`` comes again.

    The first is drawn; every further one is the reverse of the one before or drawn anew, in turn.
    """
    generator, drawn = random.Random(key), list[list[int]]()
    for i in range(number):
        drawn.append(drawn[-1][::-1] if i % 2 else generator.sample(range(size), size))
    return drawn


def answer_completions(
    policy: Policy, answers: Sequence[Sequence[str]], device: torch.device
) -> tuple[Completions, Tensor]:
    """Answers as completions, each closed as in training, and by the same token once more, which nothing reads.

    Returns:
        Completions [P, G, T], and bool[P, G], which of them are answers; the rest fill the groups up.
    """
    most = max(len(members) for members in answers)
    filled = tuple((*members, *[""] * (most - len(members))) for members in answers)
    rows = [[[*ids, ids[-1]] for ids in members] for members in closed(policy, filled)]
    real = (
        torch.arange(most, device=device) < torch.tensor([len(members) for members in answers], device=device)[:, None]
    )
    return Completions.padded(rows, filled, policy.pad_id, device), real


def row_completions(
    policy: Policy, answers: Sequence[Sequence[str]], orders: Sequence[Order], device: torch.device
) -> tuple[Completions, Tensor]:
    """Each group as one completion: its answers in the given order, each closed as in training.

    Returns:
        Completions [P, 1, T], and i64[P, G]: of each answer, in the order of ``answers``, the place whose hidden state
        has read the answer to its end and nothing behind it; -1 where a prompt has fewer answers than others.
    """
    most = max(len(members) for members in answers)
    ends = torch.full((len(answers), most), -1)
    rows = []
    for places, members, order in zip(ends, closed(policy, answers), orders, strict=True):
        row: list[int] = []
        for place in order:
            row += members[place]
            places[place] = len(row)
        rows.append([[*row, row[-1]]])
    texts = tuple(("".join(members[place] for place in order),) for members, order in zip(answers, orders, strict=True))
    return Completions.padded(rows, texts, policy.pad_id, device), ends.to(device)


def check_rows(policy: Policy, batch: PromptBatch, completions: Completions, answers: Sequence[Sequence[str]]) -> None:
    """Refuse a group whose answers, one after another behind its prompt, are more than the model has positions for.

    Raises:
        ValueError: the first such prompt by its id, with the numbers.
    """
    limit = context_limit(policy.config)
    before, behind = batch.attention_mask.sum(-1).tolist(), completions.lengths[:, 0].tolist()
    for prompt, members, asked, row in zip(batch.prompts, answers, before, behind, strict=True):
        if limit is not None and asked + row > limit:
            raise ValueError(
                f"prompt {prompt.id!r} has {asked} tokens and its {len(members)} answers {row} in a row, and the "
                f"listwise ranker's model has {limit} positions; give it smaller groups or shorter answers "
                "(rollout.group_size, rollout.sampling.max_new_tokens, or the rows of data.train), fewer or smaller "
                "frames (data.sampling, data.budget), or use a pairwise ranker, which reads answers alone"
            )


def closed(policy: Policy, answers: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Tokens of each answer with the token that ends it; what would be another special token is text."""
    markup = special_tokens(policy.processor.tokenizer, policy.placeholder_ids)
    return [[answer_ids(policy, without_tokens(text, markup)) for text in members] for members in answers]
