"""A local judge that is asked pair by pair: how surely it would name the first or the second, in both orders.

Its pairs are completions behind one prompt, so that the video is paid once per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Literal, get_args

import torch
from torch import Tensor

from orlaif.answer_format import Sees
from orlaif.evaluation.quoting import quoted
from orlaif.oracles.aggregate import bradley_terry, copeland
from orlaif.oracles.base import dense_ranks, no_score_failures
from orlaif.oracles.local import CUT, LocalJudge
from orlaif.oracles.prompting import opening
from orlaif.oracles.sorting import sorting_network
from orlaif.stages import told
from orlaif.types import CandidateGroup, PromptBatch, Ranking

PairMethod = Literal["copeland", "bradley_terry"]

PAIRWISE_INSTRUCTIONS = (
    "You are shown a video, a question about it, and two candidate answers, A and B. Which is better? What the video "
    "shows decides, then how well the question is answered; length and style do not count. Reply with the letter alone."
)


class PairwiseJudge(LocalJudge):
    """Asks a judge which of two answers is better, by the log-probs of its verdict, in both orders.

    Args:
        model: folder or hub id of the judge; None means the policy's own base, with the adapter off.
        pairs: ``all``, or ``network``: those that Batcher's sorting network compares (19 instead of 28 for 8 answers),
            which order the answers by themselves.
        method: for ``all``, ``copeland`` (pairs won) or ``bradley_terry`` (strengths, which are also the scores).
        instructions: what the judge is told.
        dtype: of the judge's weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: groups in one forward pass.
        sees: what of a completion the judge is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).

    Raises:
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        model: str | None,
        pairs: Literal["all", "network"] = "all",
        method: PairMethod = "bradley_terry",
        instructions: str = PAIRWISE_INSTRUCTIONS,
        dtype: str = "bfloat16",
        device: str | None = None,
        batch_size: int = 4,
        sees: Sees = "answer",
    ) -> None:
        super().__init__(model, dtype, device, batch_size, sees)
        if pairs not in ("all", "network"):
            raise ValueError(f"oracle.pairs is {pairs!r}; it must be 'all' or 'network'")
        if method not in get_args(PairMethod):
            raise ValueError(f"oracle.method is {method!r}; it must be 'copeland' or 'bradley_terry'")
        self.pairs, self.method, self.instructions = pairs, method, instructions

    @property
    def gives_scores(self) -> bool:
        """Whether the settings make strengths, which are scores, instead of an order alone."""
        return self.pairs == "all" and self.method == "bradley_terry"

    @torch.no_grad()
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G], and for ``bradley_terry`` over all pairs the log-strengths f32[P, G] as scores;
            groups whose verdicts are NaN in ``failures``.
        """
        groups = [group.seen(self.sees) for group in groups]
        rows: list[Tensor] = []
        for start in told(range(0, len(groups), self.batch_size), "judge", "batches"):
            rows += self._rank_part(groups[start : start + self.batch_size])
        values = torch.stack(rows)
        scores = values.float() if self.gives_scores else None
        failures = no_score_failures(self, groups, values)
        return Ranking(ranks=dense_ranks(values.round(decimals=6)), scores=scores, failures=failures)

    def _rank_part(self, groups: Sequence[CandidateGroup]) -> list[Tensor]:
        """f64[G] of each group, more is better."""
        texts = [list(dict.fromkeys(group.answers)) for group in groups]
        questions = [f"{self.instructions}\n\n{opening(group.prompt.question)}\n{CUT}" for group in groups]
        prompts = self._batch(groups, questions, cut=True)
        if self.pairs == "all":
            wanted = [list(permutations(range(len(members)), 2)) for members in texts]
            values = [self._aggregated(wins) for wins in self._wins(prompts, texts, wanted)]
        else:
            values = self._sorted(prompts, texts)
        return [
            torch.stack([value[members.index(answer)] for answer in group.answers])
            for group, members, value in zip(groups, texts, values, strict=True)
        ]

    def _aggregated(self, wins: Tensor) -> Tensor:
        if len(wins) == 1:
            return torch.zeros(1, dtype=torch.float64)
        return copeland(wins) if self.method == "copeland" else bradley_terry(wins)

    def _sorted(self, prompts: tuple[PromptBatch, str], texts: list[list[str]]) -> list[Tensor]:
        """Places in the order that the network makes, all groups one stage at a time."""
        orders = [list(range(len(members))) for members in texts]
        stages = [sorting_network(len(members)) for members in texts]
        undecided = [False] * len(texts)
        for stage in range(max(len(members) for members in stages)):
            comparisons: list[list[tuple[int, int]]] = [
                members[stage] if stage < len(members) else [] for members in stages
            ]
            wanted: list[list[tuple[int, int]]] = []
            for order, pairs in zip(orders, comparisons, strict=True):
                meets = [(order[i], order[j]) for i, j in pairs]
                wanted.append([*meets, *((b, a) for a, b in meets)])
            verdicts = self._wins(prompts, texts, wanted)
            undecided = [before or bool(wins.isnan().any()) for before, wins in zip(undecided, verdicts, strict=True)]
            for order, pairs, wins in zip(orders, comparisons, verdicts, strict=True):
                for i, j in pairs:
                    if wins[order[j], order[i]] > wins[order[i], order[j]]:
                        order[i], order[j] = order[j], order[i]
        places = [-torch.tensor([order.index(i) for i in range(len(order))]).double() for order in orders]
        # A verdict that is NaN decides nothing, and an order that rests on it is none.
        return [place * torch.nan if nan else place for place, nan in zip(places, undecided, strict=True)]

    def _wins(
        self, prompts: tuple[PromptBatch, str], texts: list[list[str]], pairs: list[list[tuple[int, int]]]
    ) -> list[Tensor]:
        """f64[n, n] of each group: probability that i is better than j, summed over the orders that were asked."""
        wins = [torch.zeros(len(members), len(members), dtype=torch.float64) for members in texts]
        most = max(len(asked) for asked in pairs)
        if not most:
            return wins
        batch, tail = prompts
        shown = [[quoted(text, self.markup) for text in members] for members in texts]
        rows = [
            [f"A: {members[i]}\nB: {members[j]}{tail}" for i, j in asked]
            for members, asked in zip(shown, pairs, strict=True)
        ]
        first = self._says_a(batch, rows)
        for i, asked in enumerate(pairs):
            for j, (a, b) in enumerate(asked):
                wins[i][a, b] += first[i, j]
                wins[i][b, a] += 1 - first[i, j]
        self._counts["verdicts"] += sum(len(asked) for asked in pairs)
        return wins
