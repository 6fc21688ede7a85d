"""Judges that are a local video-language model: another one than the policy, or the policy's own base.

The judge sees the very frames that the policy saw. What the two kinds share is here; ``listwise`` and ``pairwise`` ask.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from orlaif.answer_format import Sees, checked_sees
from orlaif.evaluation.quoting import QUOTED_NOTE, quoted, special_tokens
from orlaif.oracles.base import Judge, encoded
from orlaif.oracles.held import HeldModel
from orlaif.policy import Policy, evaluating
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.lora_settings import check_reference
from orlaif.stages import told
from orlaif.types import CandidateGroup, Completions, OracleError, PromptBatch

VERDICT_INSTRUCTIONS = (
    "You are shown a video, a question about it, a candidate answer, and a question about that candidate. Answer that "
    "last question by what the video shows. Reply with the letter alone."
)
CUT = "\u241e"  # where a rendered prompt is cut in two; no tokenizer needs to know it


class LocalJudge(Judge):
    """What the local judges share: a model, loaded on first use.

    Args:
        model: folder or hub id of the judge; None means the policy's own base, with the adapter off.
        dtype: of its weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: prompts in one forward pass.
        sees: what of a completion the judge is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).
    """

    def __init__(
        self,
        model: str | None,
        dtype: str = "bfloat16",
        device: str | None = None,
        batch_size: int = 16,
        sees: Sees = "answer",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"oracle.batch_size is {batch_size}; it must be 1 or more")
        self.model, self.batch_size, self.sees = model, batch_size, checked_sees(sees)
        self._named_device = device
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._judge = None if model is None else Policy(model, dtype=dtype)
        self._borrowed: Policy | None = None
        self._counts: Counter[str] = Counter()
        self._markup: frozenset[str] | None = None

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
            check_reference(policy.lora)
            self._borrowed = policy

    @property
    def borrows_policy(self) -> bool:
        """Whether the judge is the policy's base, which it is where ``model`` is null."""
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

    @property
    def markup(self) -> frozenset[str]:
        """Texts that the judge's tokenizer takes for special tokens; a candidate must hold none as it is."""
        if self._markup is None:
            self._markup = special_tokens(self.judge.processor.tokenizer, self.judge.placeholder_ids)
        return self._markup

    def held_models(self) -> tuple[HeldModel, ...]:
        """The judge, unless it is the policy, which is counted already."""
        if self._judge is None:
            return ()
        return (HeldModel.of_policy(type(self).__name__, self._judge, self._named_device),)

    def _adapter_off(self) -> Any:
        return self.judge.network.disable_adapter() if self._borrowed is not None else nullcontext()

    def _batch(self, groups: Sequence[CandidateGroup], questions: Sequence[str], cut: bool) -> tuple[PromptBatch, str]:
        """Prompts that ask ``questions`` about the groups' clips; with ``cut``, up to the cut, and what follows it."""
        prompts = [group.prompt.asking(question) for group, question in zip(groups, questions, strict=True)]
        encoder = ProcessorEncoder(self.judge.processor, family=self.judge.family)
        texts = [encoder.render(prompt) for prompt in prompts]
        tail = ""
        if cut:
            # The last one: a question may hold that sign as well.
            tail = texts[0].rpartition(CUT)[2]
            texts = [text.rpartition(CUT)[0] for text in texts]
        clips = [group.clip for group in groups]
        return encoded(self, groups, lambda: encoder(prompts, clips, texts)).to(self.judge.device), tail

    def _says_a(self, batch: PromptBatch, rows: Sequence[Sequence[str]]) -> Tensor:
        """f64[P, R]: how surely the judge says A rather than B behind each of its prompts' texts; R of the most."""
        judge = self.judge
        tokenizer, letters, most = judge.processor.tokenizer, letter_ids(judge, 2), max(map(len, rows))
        ids = [
            [[*tokenizer(text, add_special_tokens=False).input_ids, int(letters[0])] for text in own] for own in rows
        ]
        # Groups with fewer texts than others are filled up with rows of no token.
        filled = [[*own, *[[]] * (most - len(own))] for own in ids]
        completions = Completions.padded(filled, (("",) * most,) * len(batch), judge.pad_id, judge.device)
        with evaluating(judge.network), self._adapter_off():
            hidden, head = judge.completion_hidden(batch, completions)
        last = (completions.lengths - 1).clamp(min=0).flatten()
        verdict = hidden[torch.arange(len(hidden), device=hidden.device), last]
        scores = verdict.float() @ head["weight"][letters].float().T
        if head["bias"] is not None:
            scores = scores + head["bias"][letters].float()
        return torch.sigmoid((scores[:, 0] - scores[:, 1]).double()).cpu().view(len(batch), most)

    @torch.no_grad()
    def verdicts(self, groups: Sequence[CandidateGroup], questions: Sequence[str]) -> list[Tensor | OracleError]:
        """Answer every question about every answer by the log-probs of yes and no, with either of them named first.

        All questions about a group are completions behind one prompt, so that the video is paid once.

        Args:
            groups: P groups.
            questions: Q questions to be answered with yes or no.

        Returns:
            Of each group f64[G, Q], 1 = yes and 0 = no; or why there is none.
        """
        groups = [group.seen(self.sees) for group in groups]
        outcomes: list[Tensor | OracleError] = []
        for start in told(range(0, len(groups), self.batch_size), "judge", "batches"):
            part = groups[start : start + self.batch_size]
            texts = [list(dict.fromkeys(group.answers)) for group in part]
            asked = [f"{VERDICT_INSTRUCTIONS}\n\nQuestion: {group.prompt.question}\n\n{CUT}" for group in part]
            batch, tail = self._batch(part, asked, cut=True)
            rows = [
                [
                    f"Candidate, {QUOTED_NOTE}:\n{quoted(text, self.markup)}\n\n{question}\n{choices}{tail}"
                    for text in own
                    for question in questions
                    for choices in ("A: yes\nB: no", "A: no\nB: yes")
                ]
                for own in texts
            ]
            for group, own, first in zip(part, texts, self._says_a(batch, rows), strict=True):
                said = first[: len(own) * len(questions) * 2].view(len(own), len(questions), 2)
                self._counts["verdicts"] += said.numel()
                if bool(said.isnan().any()):
                    cause = "a verdict is NaN; its model computes no numbers (weights, or a dtype too narrow for them?)"
                    outcomes.append(OracleError(type(self).__name__, group.prompt.id, cause))
                    continue
                yes = (said[..., 0] + 1 - said[..., 1] > 1).double()
                outcomes.append(yes[[own.index(answer) for answer in group.answers]])
        return outcomes


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
