"""Criteria of particular tasks: spans in time, boxes, quantities, orders of events, captions.

What is read off an answer is in ``orlaif.evaluation``, which scores by the same readers. Each criterion goes from an
answer and its prompt to 0 to 1; what cannot be read is 0, and told from what is only wrong by a ``names_...`` criterion
behind it. A reference that a criterion cannot use is a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orlaif.evaluation.boxes import box, box_iou
from orlaif.evaluation.choices import final_answer
from orlaif.evaluation.orders import pairs_in_order
from orlaif.evaluation.spans import span, span_iou
from orlaif.evaluation.text_metrics import chrf
from orlaif.evaluation.units import quantity, relative_error
from orlaif.types import Prompt

TaskCriterion = Callable[[str, Prompt], float]


def _closeness(answer: str, prompt: Prompt) -> float:
    error = relative_error(answer, prompt.answer or "")
    return 0.0 if error is None else 1 / (1 + error)


def _in_order(answer: str, prompt: Prompt) -> float | None:
    return pairs_in_order(answer, prompt.answer or "", prompt.options or ())


TASK_CRITERIA: Mapping[str, TaskCriterion] = {
    "tiou": lambda answer, prompt: span_iou(answer, prompt.answer or "") or 0.0,
    "names_a_span": lambda answer, prompt: float(span(answer) is not None),
    "iou": lambda answer, prompt: box_iou(answer, prompt.answer or "") or 0.0,
    "names_a_box": lambda answer, prompt: float(box(answer) is not None),
    "closeness": _closeness,
    "names_a_number": lambda answer, prompt: float(quantity(final_answer(answer)) is not None),
    "order": lambda answer, prompt: _in_order(answer, prompt) or 0.0,
    "names_an_order": lambda answer, prompt: float(_in_order(answer, prompt) is not None),
    "chrf": lambda answer, prompt: chrf(answer, prompt.answer or ""),
}
