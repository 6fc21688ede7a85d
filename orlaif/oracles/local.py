"""Judges that are a local video-language model: another one than the policy, or the policy's own base.

The judge sees the very frames that the policy saw. :class:`ListwiseJudge` writes an order of all candidates;
:class:`PairwiseJudge` reads off, for every pair and both orders, how surely the model would name the first or the
second. Its pairs are completions behind one prompt, so that the video is paid once per group.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import permutations
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from orlaif.oracles.aggregate import Method, bradley_terry, by_method, copeland
from orlaif.oracles.base import Oracle, dense_ranks, ranking_of
from orlaif.oracles.prompting import LISTWISE_INSTRUCTIONS, Ballot, ballots, parse_order
from orlaif.policy import Policy, evaluating
from orlaif.policy.encoding import render, to_batch
from orlaif.types import CandidateGroup, Completions, OracleError, PromptBatch, Ranking, VideoPrompt

Output = Literal["constrained", "parsed"]
PairMethod = Literal["copeland", "bradley_terry"]

CONSTRAINED_INSTRUCTIONS = (
    "You are shown a video, a question about it, and candidate answers with letters. Order the candidates from best to "
    "worst: what the video shows decides, then how well the question is answered; length and style do not count. Reply "
    "with the letters alone, the best first."
)
PAIRWISE_INSTRUCTIONS = (
    "You are shown a video, a question about it, and two candidate answers, A and B. Which is better? What the video "
    "shows decides, then how well the question is answered; length and style do not count. Reply with the letter alone."
)
_CUT = "\u241e"  # where a rendered prompt is cut in two; no tokenizer needs to know it


class LocalJudge(Oracle):
    """What the local judges share: a model, loaded on first use.

    Args:
        model: folder or hub id of the judge; None means the policy's own base, with the adapter off.
        dtype: of its weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: prompts in one forward pass.
    """

    def __init__(
        self, model: str | None, dtype: str = "bfloat16", device: str | None = None, batch_size: int = 16
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"oracle.batch_size is {batch_size}; it must be 1 or more")
        self.model, self.batch_size = model, batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._judge = None if model is None else Policy(model, dtype=dtype)
        self._borrowed: Policy | None = None
        self._counts: Counter[str] = Counter()

    def take_counts(self) -> dict[str, float]:
        """Ballots or verdicts since this was last asked."""
        counts = {name: float(value) for name, value in self._counts.items()}
        self._counts.clear()
        return counts

    def bind(self, policy: Policy) -> None:
        """Use the policy's base; called by the training module."""
        if self.model is None:
            if policy.lora is None:
                raise ValueError(
                    "oracle.model is null: the judge is then the policy's base with the adapter off, and "
                    "this policy has no adapter; set policy.lora, or name a model"
                )
            self._borrowed = policy

    @property
    def borrows_policy(self) -> bool:
        """Where ``model`` is null."""
        return self._borrowed is not None

    @property
    def judge(self) -> Policy:
        """The model, loaded and on its device."""
        if self._borrowed is not None:
            return self._borrowed
        if self._judge is None:
            raise ValueError("oracle.model is null, and no policy has been bound")
        if self._judge.model is None:
            # Frozen, so that the features of a batch's videos are computed once however often it is asked.
            self._judge.load().to(self.device).eval().requires_grad_(False)
        return self._judge

    def _adapter_off(self) -> Any:
        return self.judge.network.disable_adapter() if self._borrowed is not None else nullcontext()

    def _batch(self, groups: Sequence[CandidateGroup], questions: Sequence[str], cut: bool) -> tuple[PromptBatch, str]:
        """Prompts that ask ``questions`` about the groups' clips; with ``cut``, up to the cut, and what follows it."""
        prompts = [
            VideoPrompt(id=group.prompt.id, video=group.prompt.video, question=question)
            for group, question in zip(groups, questions, strict=True)
        ]
        texts = [render(self.judge.processor, prompt) for prompt in prompts]
        tail = ""
        if cut:
            tail = texts[0].split(_CUT)[1]
            texts = [text.split(_CUT)[0] for text in texts]
        clips = [group.clip for group in groups]
        return to_batch(self.judge.processor, prompts, clips, texts).to(self.judge.device), tail


class ListwiseJudge(LocalJudge):
    """Shows a judge all different answers of a group and takes the order it writes.

    Args:
        model: folder or hub id of the judge; None means the policy's own base, with the adapter off.
        output: ``constrained`` lets it write nothing but letters that are left, so that every reply is an order;
            ``parsed`` lets it write freely and reads the reply strictly, which may fail, and may tie.
        num_ballots: orders in which the candidates are shown; their rankings are aggregated.
        method: ``borda`` or ``copeland``, over the ballots.
        max_tokens: longest reply, for ``parsed``.
        instructions: what the judge is told; by default by ``output``.
        dtype: of the judge's weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: ballots in one forward pass.
        seed: of the ballots.

    Raises:
        ValueError: settings that contradict each other.
    """

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
    ) -> None:
        super().__init__(model, dtype, device, batch_size)
        if output not in get_args(Output):
            raise ValueError(f"oracle.output is {output!r}; it must be 'constrained' or 'parsed'")
        if method not in get_args(Method):
            raise ValueError(f"oracle.method is {method!r}; it must be 'borda' or 'copeland'")
        if num_ballots < 1:
            raise ValueError(f"oracle.num_ballots is {num_ballots}; it must be 1 or more")
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
        for start in range(0, len(shown), self.batch_size):
            part = shown[start : start + self.batch_size]
            for (i, ballot), reply in zip(part, self._replies([ballot for _, ballot in part]), strict=True):
                try:
                    opinions.setdefault(i, []).append(ballot.ranks(self._order(reply, ballot)))
                except ValueError as error:
                    failures[i] = OracleError(type(self).__name__, ballot.group.prompt.id, str(error))
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
        questions = [f"{self.instructions}\n\n{ballot.question}" for ballot in part]
        batch, _ = self._batch([ballot.group for ballot in part], questions, cut=False)
        length = batch.input_ids.shape[1]
        sizes = [len(ballot.texts) for ballot in part]
        settings: dict[str, Any] = {"max_new_tokens": self.max_tokens, "suppress_tokens": judge.placeholder_ids}
        letters: list[int] = []
        if self.output == "constrained":
            letters = letter_ids(judge, max(sizes)).tolist()

            def left(row: int, ids: Tensor) -> list[int]:
                """Letters of the ballot that have not been written yet, then the end."""
                written = set(ids[length:].tolist())
                return [letter for letter in letters[: sizes[row]] if letter not in written] or list(judge.eos_ids)

            settings = {"max_new_tokens": max(sizes), "prefix_allowed_tokens_fn": left}
        with evaluating(judge.network), self._adapter_off():
            ids = judge.network.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                do_sample=False,
                pad_token_id=judge.pad_id,
                eos_token_id=list(judge.eos_ids),
                **settings,
                **batch.mm_inputs,
            )[:, length:]
        if self.output == "parsed":
            return judge.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        names = dict(zip(letters, string.ascii_uppercase, strict=False))
        return [" ".join(names[t] for t in row[:n]) for row, n in zip(ids.tolist(), sizes, strict=True)]


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
    ) -> None:
        super().__init__(model, dtype, device, batch_size)
        if pairs not in ("all", "network"):
            raise ValueError(f"oracle.pairs is {pairs!r}; it must be 'all' or 'network'")
        if method not in get_args(PairMethod):
            raise ValueError(f"oracle.method is {method!r}; it must be 'copeland' or 'bradley_terry'")
        self.pairs, self.method, self.instructions = pairs, method, instructions

    @torch.no_grad()
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G], and for ``bradley_terry`` over all pairs the log-strengths f32[P, G] as scores.
        """
        rows: list[Tensor] = []
        for start in range(0, len(groups), self.batch_size):
            rows += self._rank_part(groups[start : start + self.batch_size])
        values = torch.stack(rows)
        scores = values.float() if self.pairs == "all" and self.method == "bradley_terry" else None
        return Ranking(ranks=dense_ranks(values.round(decimals=6)), scores=scores)

    def _rank_part(self, groups: Sequence[CandidateGroup]) -> list[Tensor]:
        """f64[G] of each group, more is better."""
        texts = [list(dict.fromkeys(group.answers)) for group in groups]
        questions = [f"{self.instructions}\n\nQuestion: {group.prompt.question}\n\n{_CUT}" for group in groups]
        prompts = self._batch(groups, questions, cut=True)
        if self.pairs == "all":
            wanted = [list(permutations(range(len(own)), 2)) for own in texts]
            values = [self._aggregated(wins) for wins in self._wins(prompts, texts, wanted)]
        else:
            values = self._sorted(prompts, texts)
        return [
            torch.stack([value[own.index(answer)] for answer in group.answers])
            for group, own, value in zip(groups, texts, values, strict=True)
        ]

    def _aggregated(self, wins: Tensor) -> Tensor:
        if len(wins) == 1:
            return torch.zeros(1, dtype=torch.float64)
        return copeland(wins) if self.method == "copeland" else bradley_terry(wins)

    def _sorted(self, prompts: tuple[PromptBatch, str], texts: list[list[str]]) -> list[Tensor]:
        """Places in the order that the network makes, all groups one stage at a time."""
        orders = [list(range(len(own))) for own in texts]
        stages = [sorting_network(len(own)) for own in texts]
        for stage in range(max(len(own) for own in stages)):
            comparisons: list[list[tuple[int, int]]] = [own[stage] if stage < len(own) else [] for own in stages]
            wanted: list[list[tuple[int, int]]] = []
            for order, pairs in zip(orders, comparisons, strict=True):
                meets = [(order[i], order[j]) for i, j in pairs]
                wanted.append([*meets, *((b, a) for a, b in meets)])
            for order, pairs, wins in zip(orders, comparisons, self._wins(prompts, texts, wanted), strict=True):
                for i, j in pairs:
                    if wins[order[j], order[i]] > wins[order[i], order[j]]:
                        order[i], order[j] = order[j], order[i]
        return [-torch.tensor([order.index(i) for i in range(len(order))]).double() for order in orders]

    def _wins(
        self, prompts: tuple[PromptBatch, str], texts: list[list[str]], pairs: list[list[tuple[int, int]]]
    ) -> list[Tensor]:
        """f64[n, n] of each group: probability that i is better than j, summed over the orders that were asked."""
        wins = [torch.zeros(len(own), len(own), dtype=torch.float64) for own in texts]
        most = max(len(asked) for asked in pairs)
        if not most:
            return wins
        judge, (batch, tail) = self.judge, prompts
        letters = letter_ids(judge, 2)
        tokenizer = judge.processor.tokenizer
        rows = [
            [
                [*tokenizer(f"A: {own[i]}\nB: {own[j]}{tail}", add_special_tokens=False).input_ids, int(letters[0])]
                for i, j in asked
            ]
            for own, asked in zip(texts, pairs, strict=True)
        ]
        # Groups with fewer pairs than others are filled up with rows of no token.
        filled = [[*own, *[[]] * (most - len(own))] for own in rows]
        completions = Completions.padded(filled, (("",) * most,) * len(batch), judge.pad_id, judge.device)
        with evaluating(judge.network), self._adapter_off():
            hidden, head = judge.completion_hidden(batch, completions)
        last = (completions.lengths - 1).clamp(min=0).flatten()
        verdict = hidden[torch.arange(len(hidden), device=hidden.device), last]
        scores = verdict.float() @ head["weight"][letters].float().T
        if head["bias"] is not None:
            scores = scores + head["bias"][letters].float()
        first = torch.sigmoid((scores[:, 0] - scores[:, 1]).double()).cpu().view(len(batch), most)
        for i, asked in enumerate(pairs):
            for j, (a, b) in enumerate(asked):
                wins[i][a, b] += first[i, j]
                wins[i][b, a] += 1 - first[i, j]
        self._counts["verdicts"] += sum(len(asked) for asked in pairs)
        return wins


def letter_ids(judge: Policy, number: int) -> Tensor:
    """Tokens of the first ``number`` capital letters, i64[number].

    Raises:
        ValueError: a tokenizer to which they are not single, different tokens.
    """
    tokenizer = judge.processor.tokenizer
    ids = [tokenizer(letter, add_special_tokens=False).input_ids for letter in string.ascii_uppercase[:number]]
    flat = [row[-1] for row in ids if row]
    if len(set(flat)) < number or tokenizer.unk_token_id in flat:
        raise ValueError(
            f"oracle.model: its tokenizer has no token of its own for each of the letters A .. "
            f"{string.ascii_uppercase[number - 1]}"
        )
    return torch.tensor(flat, device=judge.device)


def sorting_network(n: int) -> list[list[tuple[int, int]]]:
    """Batcher's odd-even merge sort (Batcher 1968) for ``n`` places: stages of comparisons that share no place.

    Args:
        n: places, 1 or more.

    Returns:
        Pairs (i, j), i < j, whose better one goes to i.
    """
    stages = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            stage = [
                (i + j, i + j + k)
                for j in range(k % p, n - k, 2 * k)
                for i in range(min(k, n - j - k))
                if (i + j) // (2 * p) == (i + j + k) // (2 * p)
            ]
            stages.append(stage)
            k //= 2
        p *= 2
    return stages
