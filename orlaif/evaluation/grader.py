"""A judge of single answers behind a chat-completions server: what open-ended evaluations ask.

Model, server and instructions are kept with the results: scores of two judges are not comparable (ten points between
versions of one have been seen). An answer without a grade is said as what it is, a server that gave none or a reply
that cannot be read, and counted; past a stated share there are no results at all.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from orlaif.evaluation.choices import without_thoughts
from orlaif.evaluation.quoting import QUOTED_NOTE, quoted
from orlaif.openai_client import ChatClient, UnansweredError, UnreachableError
from orlaif.stages import stage


@dataclass(frozen=True)
class Ungraded:
    """An answer that has no grade.

    Args:
        ungraded: ``unanswered`` (the server gave no reply) or ``unreadable`` (a reply that says nothing).
        cause: in words.
    """

    ungraded: Literal["unanswered", "unreadable"]
    cause: str

    def record(self) -> dict[str, Any]:
        """Its fields as a dict, as they stand in ``graded.jsonl``."""
        return asdict(self)


class ChatGrader:
    """Any OpenAI-compatible server.

    Args:
        client: the server, and how it is asked.
        max_ungraded_rate: no results where more than this share of the answers got no grade. The predictions are kept,
            and the replies where ``client.cache_dir`` is set, so that ``orlaif test`` goes on there.

    Raises:
        ValueError: a rate outside of [0, 1].
    """

    def __init__(self, client: ChatClient, max_ungraded_rate: float = 0.1) -> None:
        if not 0 <= max_ungraded_rate <= 1:
            raise ValueError(f"judge.max_ungraded_rate is {max_ungraded_rate}; it must lie in [0, 1]")
        self.client, self.max_ungraded_rate = client, max_ungraded_rate

    def about(self, *instructions: str) -> dict[str, Any]:
        """What pins the judge: server, model, settings, and a hash of what it was told."""
        told = hashlib.sha256("\n".join(instructions).encode()).hexdigest()[:16]
        return {**self.client.about(), "instructions_sha256": told}

    def ask_all(
        self, questions: Sequence[tuple[str, str, Callable[[str], dict[str, Any]]]]
    ) -> list[dict[str, Any] | Ungraded]:
        """Questions, all in flight together.

        Args:
            questions: N triples: instructions, question, and the reader that makes of a reply what it says, or raises
                ValueError where it says nothing that can be read.

        Returns:
            What each reply says, or why there is nothing.

        Raises:
            ConnectionError: more than ``max_ungraded_rate`` have no grade, and the server could not be reached.
            ValueError: more than that have none, for other reasons.
        """
        allowed = self.max_ungraded_rate * len(questions)
        causes: list[tuple[Ungraded, Exception]] = []

        async def one(system: str, content: str, read: Callable[[str], dict[str, Any]]) -> dict[str, Any] | Ungraded:
            try:
                said = await self.client.ask(system, content, read)
                graded.advance()
                return said
            except (ValueError, UnansweredError) as error:
                kind: Literal["unanswered", "unreadable"] = (
                    "unanswered" if isinstance(error, UnansweredError) else "unreadable"
                )
                without = Ungraded(kind, str(error) or type(error).__name__)
                causes.append((without, error))
                unreachable = sum(isinstance(problem, UnreachableError) for _, problem in causes)
                if unreachable > allowed:  # the others would wait for it as long, to learn the same
                    raise _too_many(causes, len(questions), self.max_ungraded_rate) from None
                return without

        async def everything() -> list[dict[str, Any] | Ungraded]:
            return await _together([one(*question) for question in questions])

        with stage("grading", len(questions), "answers") as graded:
            replies = self.client.run(everything())
        if len(causes) > allowed:
            raise _too_many(causes, len(questions), self.max_ungraded_rate)
        return replies


async def _together(work: Iterable[Any]) -> list[Any]:
    """All results; the first error ends the rest."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _too_many(causes: Sequence[tuple[Ungraded, Exception]], asked: int, rate: float) -> Exception:
    unanswered = sum(without.ungraded == "unanswered" for without, _ in causes)
    unreachable = [problem for _, problem in causes if isinstance(problem, UnreachableError)]
    example = unreachable[0] if unreachable else causes[0][1]
    text = (
        f"the judge graded too few of {asked} answers: {unanswered} requests brought no reply and "
        f"{len(causes) - unanswered} replies could not be read, more than judge.max_ungraded_rate allows ({rate:g}), "
        f"such as: {example}. Predictions are kept; the next `orlaif test` grades them"
    )
    return ConnectionError(text) if unreachable else ValueError(text)


def comparison(question: str, answer: str, prediction: str) -> str:
    """What a judge of one answer is shown; what was predicted cannot pass for anything else."""
    shown = f"Question: {question}\nThe answers, {QUOTED_NOTE}.\n"
    return f"{shown}Correct answer: {quoted(answer)}\nPredicted answer: {quoted(prediction)}"


def read_object(reply: str) -> dict[str, Any]:
    """The one object in a reply, as JSON or as a Python dictionary, with thoughts before it and prose around it or not.

    Raises:
        ValueError: none, or more than one.
    """
    reply = without_thoughts(reply)
    objects: list[dict[str, Any]] = []
    place = reply.find("{")
    while place >= 0:
        end = reply.find("}", place)
        if end < 0:
            break
        text = reply[place : end + 1]
        value: Any = None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                value = None
        if isinstance(value, dict):
            objects.append(value)
        place = reply.find("{", end)
    if len(objects) != 1:
        short = reply if len(reply) <= 200 else f"{reply[:200]}..."
        raise ValueError(f"{len(objects)} objects in the reply {short!r}")
    return objects[0]


def read_score(value: Any) -> float:
    """A score from 0 to 5, as a number or its text; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"the score is {value!r}; it must be a number from 0 to 5")
    try:
        score = float(value)
    except ValueError:
        raise ValueError(f"the score is {value!r}; it must be a number from 0 to 5") from None
    if not 0 <= score <= 5:
        raise ValueError(f"the score is {value!r}; it must be a number from 0 to 5")
    return score
