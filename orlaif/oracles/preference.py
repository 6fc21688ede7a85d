"""The paper's oracle: a ranker trained on preferences between answers to questions about videos.

A video-language model with a scalar head on its last hidden state scores an answer; preferences train it by the
Bradley-Terry model (pairs; Bradley & Terry 1952) or the Plackett-Luce model (whole rankings; Plackett 1975, Luce 1959).

The answers to a question are completions behind one prompt, so the video is paid once, in training and in use.

Shapes: P groups, G answers, T tokens, H hidden size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orlaif.distributed.sync import process_index
from orlaif.evaluation.quoting import special_tokens, without_tokens
from orlaif.oracles.base import Oracle, dense_ranks, encoded, no_score_failures
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.ending import answer_ids
from orlaif.policy.export import check_export, published, write_policy
from orlaif.types import CandidateGroup, Completions, PromptBatch, Ranking

HEAD_FILE, ABOUT_FILE = "ranker_head.safetensors", "ranker.json"


def bradley_terry_loss(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of all pairs that the ranks order.

    Args:
        scores: f[P, G].
        ranks: i64[P, G], 0 = best, equal answers share a rank and are no pair, -1 = not ranked.

    Returns:
        The sum over pairs, 0-dim with gradient, and their number.
    """
    valid = ranks >= 0
    better = (ranks.unsqueeze(-1) < ranks.unsqueeze(-2)) & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    margins = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    losses = -torch.nn.functional.logsigmoid(margins)
    return losses.where(better, losses.new_zeros(())).sum(), better.sum()


def plackett_luce_loss(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the order: again and again the best of those that are left is chosen.

    Ties are Breslow's (1974): each answer of a level is chosen among all of its level and below.

    Args:
        scores: f[P, G].
        ranks: i64[P, G], as in :func:`bradley_terry_loss`.

    Returns:
        The sum over choices among two or more levels, 0-dim with gradient, and their number.
    """
    valid = ranks >= 0
    left = (ranks.unsqueeze(-1) <= ranks.unsqueeze(-2)) & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    rivals = scores.unsqueeze(-2).expand(*left.shape).masked_fill(~left, -torch.inf)
    chosen = valid & (left & (ranks.unsqueeze(-1) < ranks.unsqueeze(-2))).any(-1)
    losses = torch.logsumexp(rivals.where(chosen.unsqueeze(-1), rivals.new_zeros(())), -1) - scores
    return losses.where(chosen, losses.new_zeros(())).sum(), chosen.sum()


class Ranker(nn.Module):
    """A video-language model with a scalar head.

    Args:
        policy: the backbone; its LM head is not used.
        head: f32 weights of the scalar head, by default random ones.
        system_prompt: goes before every question, if given.
    """

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
                json.dump({"system_prompt": self.system_prompt}, file)

    @classmethod
    def from_folder(cls, folder: str, **settings: Any) -> Ranker:
        """What :meth:`export` wrote, with settings of the policy; raises ValueError for another folder."""
        path = os.path.join(folder, HEAD_FILE)
        if not os.path.exists(path):
            raise ValueError(f"{folder} has no {HEAD_FILE}: it is no ranker that orlaif trained")
        weight = load_file(path)["weight"]
        head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32)
        head.load_state_dict({"weight": weight})
        with open(os.path.join(folder, ABOUT_FILE), encoding="utf-8") as file:
            about = json.load(file)
        return cls(Policy(folder, **settings), head, about["system_prompt"]).load()


def answer_completions(
    policy: Policy, answers: Sequence[Sequence[str]], device: torch.device
) -> tuple[Completions, Tensor]:
    """Answers as completions, each closed as in training, and by the same token once more, which nothing reads.

    Returns:
        Completions [P, G, T], and bool[P, G], which of them are answers; the rest fill the groups up.
    """
    markup = special_tokens(policy.processor.tokenizer, policy.placeholder_ids)
    most = max(len(members) for members in answers)
    filled = tuple((*members, *[""] * (most - len(members))) for members in answers)
    closed = [[answer_ids(policy, without_tokens(text, markup)) for text in members] for members in filled]
    rows = [[[*ids, ids[-1]] for ids in members] for members in closed]
    real = (
        torch.arange(most, device=device) < torch.tensor([len(members) for members in answers], device=device)[:, None]
    )
    return Completions.padded(rows, filled, policy.pad_id, device), real


class PreferenceRanker(Oracle):
    """Ranks by the scores of a trained ranker.

    Args:
        path: folder that the ranker's training exported.
        dtype: of the backbone's weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: groups in one forward pass.

    Raises:
        ValueError: a batch size below 1; on first use, a folder that holds no ranker.
    """

    def __init__(self, path: str, dtype: str = "bfloat16", device: str | None = None, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ValueError(f"oracle.batch_size is {batch_size}; it must be 1 or more")
        self.path, self.dtype, self.batch_size = path, dtype, batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._ranker: Ranker | None = None

    def held_models(self) -> tuple[str, ...]:
        """Names of the models held on the GPU: the trained ranker."""
        return (type(self).__name__,)

    @property
    def ranker(self) -> Ranker:
        """The ranker, loaded and on its device."""
        if self._ranker is None:
            self._ranker = Ranker.from_folder(self.path, dtype=self.dtype).to(self.device).eval()
        return self._ranker

    @torch.no_grad()
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G] and the scores f32[P, G]; the same answer twice has the same score; groups
            whose scores are all NaN in ``failures``.
        """
        ranker, parts = self.ranker, []
        encoder = ProcessorEncoder(ranker.policy.processor, ranker.system_prompt, ranker.policy.family)
        for start in range(0, len(groups), self.batch_size):
            part = groups[start : start + self.batch_size]
            prompts, clips = [group.prompt for group in part], [group.clip for group in part]
            batch = encoded(self, part, partial(encoder, prompts, clips)).to(self.device)
            different = [list(dict.fromkeys(group.answers)) for group in part]
            scores = ranker(batch, different).float().cpu()
            parts.append(
                torch.stack(
                    [
                        row[[members.index(answer) for answer in group.answers]]
                        for row, members, group in zip(scores, different, part, strict=True)
                    ]
                )
            )
        scores = torch.cat(parts)
        failures = no_score_failures(self, groups, scores)
        return Ranking(ranks=dense_ranks(scores), scores=scores, failures=failures)
