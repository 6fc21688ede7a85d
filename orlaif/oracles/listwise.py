"""A local judge that writes an order of all candidates."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from orlaif.answer_format import Sees
from orlaif.oracles.aggregate import Method, by_method
from orlaif.oracles.base import Exchange, ranking_of
from orlaif.oracles.local import LocalJudge, letter_ids
from orlaif.oracles.prompting import LISTWISE_INSTRUCTIONS, MOST_CANDIDATES, Ballot, ballots, check_orders, parse_order
from orlaif.rollout import SamplingParams, generate
from orlaif.stages import told
from orlaif.types import CandidateGroup, OracleError, Ranking

Output = Literal["constrained", "parsed"]

CONSTRAINED_INSTRUCTIONS = (
    "You are shown a video, a question about it, and candidate answers with letters. Order the candidates from best to "
    "worst: what the video shows decides, then how well the question is answered; length and style do not count. Reply "
    "with the letters alone, the best first."
)


class ListwiseJudge(LocalJudge):
    """Shows a judge all different answers of a group and takes the order it writes.

    Args:
        model: folder or hub id of the judge; None means the policy's own base, with the adapter off.
        output: ``constrained`` lets it write nothing but letters that are left, so that every reply is an order;
            ``parsed`` lets it write freely and reads the reply strictly, which may fail, and may tie.
        num_ballots: orders in which the candidates are shown; their rankings are aggregated; 1 to 52.
        method: ``borda`` or ``copeland``, over the ballots.
        max_tokens: longest reply, for ``parsed``.
        instructions: what the judge is told; by default by ``output``.
        dtype: of the judge's weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: ballots in one forward pass.
        seed: of the ballots.
        sees: what of a completion the judge is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).

    Raises:
        ValueError: settings that contradict each other.
    """

    gives_scores = False
    most_answers = MOST_CANDIDATES

    def __init__(
        self,
        model: str | None,
        output: Output = "constrained",
        num_ballots: int = 2,
        method: Method = "borda",
        max_tokens: int = 128,
        instructions: str | None = None,
        dtype: str = "bfloat16",
        device: str | None = None,
        batch_size: int = 16,
        seed: int = 0,
        sees: Sees = "answer",
    ) -> None:
        super().__init__(model, dtype, device, batch_size, sees)
        if output not in get_args(Output):
            raise ValueError(f"oracle.output is {output!r}; it must be 'constrained' or 'parsed'")
        if method not in get_args(Method):
            raise ValueError(f"oracle.method is {method!r}; it must be 'borda' or 'copeland'")
        check_orders("num_ballots", num_ballots)
        self.output, self.num_ballots, self.method = output, num_ballots, method
        self.max_tokens, self.seed = max_tokens, seed
        default = CONSTRAINED_INSTRUCTIONS if output == "constrained" else LISTWISE_INSTRUCTIONS
        self.instructions = instructions or default

    @torch.no_grad()
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G]; groups with a reply that could not be read in ``failures``.
        """
        groups = [group.seen(self.sees) for group in groups]
        shown: list[tuple[int, Ballot]] = []
        failures: dict[int, OracleError] = {}
        for i, group in enumerate(groups):
            try:
                if len(set(group.answers)) > 1:
                    shown += [(i, ballot) for ballot in ballots(group, self.num_ballots, self.seed)]
            except ValueError as error:
                failures[i] = OracleError(type(self).__name__, group.prompt.id, str(error))
        self._counts["ballots"] += len(shown)
        opinions: dict[int, list[list[int]]] = {}
        for start in told(range(0, len(shown), self.batch_size), "judge", "batches"):
            part = shown[start : start + self.batch_size]
            for (i, ballot), reply in zip(part, self._replies([ballot for _, ballot in part]), strict=True):
                prompt_id = ballot.group.prompt.id
                asked = ballot.asked(self.markup)
                self.keep_exchanges([Exchange(prompt_id=prompt_id, asked=asked, replied=reply)])
                try:
                    opinions.setdefault(i, []).append(ballot.ranks(self._order(reply, ballot)))
                except ValueError as error:
                    failures[i] = OracleError(type(self).__name__, prompt_id, str(error))
        undecided = torch.zeros(len(groups[0].answers), dtype=torch.float64)  # one answer: nothing to decide
        outcomes: list[Tensor | OracleError] = []
        for i in range(len(groups)):
            given = by_method(self.method, torch.tensor(opinions[i])) if i in opinions else undecided
            outcomes.append(failures.get(i, given))
        return ranking_of(outcomes, len(groups[0].answers))

    def _order(self, reply: str, ballot: Ballot) -> list[list[int]]:
        if self.output == "parsed":
            return parse_order(reply, ballot.labels)
        return [[ballot.labels.index(letter)] for letter in reply.split()]

    def _replies(self, part: Sequence[Ballot]) -> list[str]:
        """One reply per ballot; constrained ones are letters with blanks between."""
        judge = self.judge
        questions = [f"{self.instructions}\n\n{ballot.asked(self.markup)}" for ballot in part]
        batch, _ = self._batch([ballot.group for ballot in part], questions, cut=False)
        if self.output == "parsed":
            with self._adapter_off():
                completions = generate(judge, batch, 1, SamplingParams(max_new_tokens=self.max_tokens, temperature=0))
            return [text for (text,) in completions.texts]
        sizes = [len(ballot.texts) for ballot in part]
        letters = letter_ids(judge, max(sizes)).tolist()

        def left(place: int, written: list[int]) -> list[int]:
            """Letters of the ballot that have not been written yet, then the end."""
            return [letter for letter in letters[: sizes[place]] if letter not in written] or list(judge.eos_ids)

        sampling = SamplingParams(max_new_tokens=max(sizes), temperature=0)
        with self._adapter_off():
            ids = generate(judge, batch, 1, sampling, allowed=left).ids[:, 0]
        names = dict(zip(letters, string.ascii_uppercase, strict=False))
        return [" ".join(names[t] for t in row[:n]) for row, n in zip(ids.tolist(), sizes, strict=True)]
