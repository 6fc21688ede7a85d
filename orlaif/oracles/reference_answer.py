"""The oracle that knows the reference answer.

Answers are compared by one criterion after the other; the next one decides only among answers that the one before finds
equal. By default: right before right kind before wrong kind, all answers of a class tied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from orlaif.answer_format import Read
from orlaif.evaluation.choices import choice, same_choice
from orlaif.evaluation.text_metrics import is_correct, normalize_answer, rouge_l, same_number, token_f1
from orlaif.oracles.base import Oracle, dense_ranks
from orlaif.oracles.task_criteria import TASK_CRITERIA
from orlaif.types import CandidateGroup, OracleError, Prompt, Ranking

Criterion = Callable[[str, Prompt], float]


def _kind(answer: str, prompt: Prompt) -> float:
    kinds = {normalize_answer(option) for option in prompt.options or ()}
    return float(normalize_answer(answer) in kinds or is_correct(answer, prompt.answer or ""))


#: What a recipe may name; each from an answer and its prompt, whose ``answer`` is known, to a number: more is better.
CRITERIA: Mapping[str, Criterion] = {
    "exact": lambda answer, prompt: float(is_correct(answer, prompt.answer or "")),
    "kind": _kind,
    "f1": lambda answer, prompt: token_f1(answer, prompt.answer or ""),
    "rouge_l": lambda answer, prompt: rouge_l(answer, prompt.answer or ""),
    "numeric": lambda answer, prompt: same_number(answer, prompt.answer or ""),
    "choice": lambda answer, prompt: same_choice(answer, prompt.answer or "", prompt.options or ()),
    "names_an_option": lambda answer, prompt: float(choice(answer, prompt.options or ()) is not None),
    "shortest": lambda answer, prompt: -float(len(answer.split())),
    **TASK_CRITERIA,
}
#: A criterion of how a completion is written, whatever it says.
FORMAT = "format"
_NEEDS_OPTIONS = ("choice", "names_an_option")


class ReferenceAnswerOracle(Oracle):
    """Orders answers by the prompt's reference answer.

    Args:
        criteria: of :data:`CRITERIA`, the deciding one first: ``exact`` (after SQuAD's normalisation), ``kind`` (at
            least one of the prompt's options: it understood the question), ``f1`` (of words), ``rouge_l``, ``numeric``
            (the same number, in digits or words), ``choice`` (the same option, by letter or text),
            ``names_an_option``, ``shortest`` (fewest words), ``format`` (the completion keeps to
            ``policy.answer_format`` to the letter); of time spans ``tiou``, of boxes ``iou``, of numbers with
            units ``closeness`` (by relative error), of events ``order`` (pairs as the reference has them), of captions
            ``chrf``; and ``names_a_span``, ``names_a_box``, ``names_a_number``, ``names_an_order``. The scores of a
            ranking are the means of the criteria but ``shortest``. A completion without an answer is lowest by all.

    Raises:
        ValueError: an unknown criterion, or none.
    """

    gives_scores = True

    def __init__(self, criteria: Sequence[str] = ("exact", "kind")) -> None:
        unknown = [name for name in criteria if name not in (*CRITERIA, FORMAT)]
        if unknown or not criteria:
            raise ValueError(
                f"oracle.criteria is {list(criteria)}; it must be one or more of {', '.join((*CRITERIA, FORMAT))}"
            )
        self.criteria = tuple(criteria)

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups; every prompt needs a reference ``answer``, and ``options`` for criteria of choice.

        Returns:
            Dense ranks i64[P, G] and scores f32[P, G].

        Raises:
            OracleError: a prompt without what the criteria need.
        """
        graded = [self._graded(group) for group in groups]
        # Lexicographic order as one number: the place of each tuple among its group's.
        places = torch.tensor([[sorted(group).index(values) for values in group] for group in graded])
        counted = [i for i, name in enumerate(self.criteria) if name != "shortest"]
        scores = [[sum(values[i] for i in counted) / max(1, len(counted)) for values in group] for group in graded]
        return Ranking(ranks=dense_ranks(places.float()), scores=torch.tensor(scores))

    def lacks(self, prompt: Prompt) -> str | None:
        """A reference answer; options, where criteria compare with them."""
        if prompt.answer is None:
            return "the prompt has no reference answer"
        if not prompt.options and any(criterion in _NEEDS_OPTIONS for criterion in self.criteria):
            return "the prompt has no options, which oracle.criteria ask for"
        try:
            for criterion in self.criteria:
                if criterion in TASK_CRITERIA:
                    TASK_CRITERIA[criterion](prompt.answer, prompt)
        except ValueError as error:
            return str(error)
        return None

    def _graded(self, group: CandidateGroup) -> list[tuple[float, ...]]:
        prompt = group.prompt
        if (lack := self.lacks(prompt)) is not None:
            raise OracleError(type(self).__name__, prompt.id, lack)
        return [tuple(_value(name, read, prompt) for name in self.criteria) for read in group.reads]


def _value(criterion: str, read: Read, prompt: Prompt) -> float:
    """By a criterion; a completion without an answer has the lowest there is."""
    if criterion == FORMAT:
        return float(read.well_formed)
    if read.answer is None:
        return -math.inf if criterion == "shortest" else 0.0
    return CRITERIA[criterion](read.answer, prompt)
