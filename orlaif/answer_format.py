"""What of a completion is the answer, and what are thoughts: ``policy.answer_format`` of a recipe.

Oracles, evaluation and metrics all read completions by the one format of the policy. A format never guesses: where a
text holds no answer by its rules, there is none, and the answer counts as wrong and as unreadable.

Where a text holds several answers, the last one is read, so that naming many gains nothing, and the text is not well
formed.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args


@dataclass(frozen=True)
class Read:
    """A completion as its format reads it.

    Args:
        answer: without blanks around it; None where the text holds none.
        thoughts: what comes before, where the format tells them apart.
        well_formed: the text keeps to the format to the letter, as the criterion ``format`` asks.
    """

    answer: str | None
    thoughts: str | None
    well_formed: bool


class AnswerFormat(ABC):
    """The seam for a format of one's own, which a recipe names by ``class_path``."""

    @abstractmethod
    def read(self, text: str) -> Read:
        """What a completion says.

        Args:
            text: the completion, without the token that ends it.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({settings})"


class WholeAnswer(AnswerFormat):
    """``whole``, the default: all of the text, as it is, is the answer; even an empty one."""

    def read(self, text: str) -> Read:
        """The text."""
        return Read(text, None, True)


class TaggedAnswer(AnswerFormat):
    """``think_answer``: ``<think>thoughts</think><answer>answer</answer>``, by tags of any name.

    Thoughts end at the last ``</think>``, and what they say of an answer is none. Of several answers behind them the
    last closed one is read, of nested ones the innermost. An answer that is not closed, is empty, or stands in thoughts
    that are not closed, is none. Well formed is: each tag once, in this order, nothing but blanks outside of them, and
    an answer that is not empty; thoughts may be.

    Args:
        answer: name of the answer's tag.
        thoughts: name of the thoughts' tag; None where the model is not asked for any.
        opened_by_prompt: the chat template has written the opening tag of the thoughts already.

    Raises:
        ValueError: a name that is no tag's, or one for both.
    """

    def __init__(self, answer: str = "answer", thoughts: str | None = "think", opened_by_prompt: bool = False) -> None:
        for name, value in (("answer", answer), ("thoughts", thoughts)):
            if value is not None and not re.fullmatch(r"[\w:.-]+", value):
                raise ValueError(f"answer_format.{name} is {value!r}; it must be a tag's name, such as 'answer'")
        if answer == thoughts:
            raise ValueError(f"answer_format.thoughts is {thoughts!r}, the answer's tag; the two must differ")
        self.answer, self.thoughts, self.opened_by_prompt = answer, thoughts, opened_by_prompt
        tags = [f"<{answer}>", f"</{answer}>"]
        start = r"\s*"
        if thoughts is not None:
            tags += [f"</{thoughts}>"] if opened_by_prompt else [f"<{thoughts}>", f"</{thoughts}>"]
            start = rf"{'' if opened_by_prompt else rf'{start}<{re.escape(thoughts)}>'}.*</{re.escape(thoughts)}>\s*"
        name = re.escape(answer)
        self._tags = tuple(tags)
        self._pair = re.compile(rf"<{name}>((?:(?!</?{name}>).)*)</{name}>", re.DOTALL)
        self._exact = re.compile(rf"{start}<{name}>.*</{name}>\s*", re.DOTALL)

    def read(self, text: str) -> Read:
        """Thoughts, and the answer behind them."""
        thoughts, rest = self._parted(text)
        found: list[str] = self._pair.findall(rest)
        answer = found[-1].strip() if found else ""
        exact = all(text.count(tag) == 1 for tag in self._tags) and self._exact.fullmatch(text) is not None
        return Read(answer or None, thoughts, exact and bool(answer))

    def _parted(self, text: str) -> tuple[str | None, str]:
        """Thoughts, if any, and what comes after them."""
        if self.thoughts is None:
            return None, text
        opening, closing = f"<{self.thoughts}>", f"</{self.thoughts}>"
        before, closed, rest = text.rpartition(closing)
        if closed:
            return before.strip().removeprefix(opening).strip(), rest
        if opening in text:  # cut off while it thought
            return text.partition(opening)[2].strip(), ""
        return (text.strip(), "") if self.opened_by_prompt else (None, text)


class LastLine(AnswerFormat):
    """``last_line``: the last line with anything on it is the answer, the lines before it are thoughts."""

    def read(self, text: str) -> Read:
        """Well formed is every text that is not blank."""
        lines = text.strip().splitlines()
        if not lines:
            return Read(None, None, False)
        return Read(lines[-1].strip(), "\n".join(lines[:-1]).strip() or None, True)


class BoxedAnswer(AnswerFormat):
    r"""``boxed``: the content of the last closed ``\boxed{...}`` is the answer, what comes before it are thoughts.

    Braces are balanced; ``\{`` and ``\}`` are signs and not braces. Of nested boxes the innermost is read. Well formed
    is: one box, closed and not empty.
    """

    _OPENING = re.compile(r"\\boxed\s*\{")

    def read(self, text: str) -> Read:
        """The last box."""
        boxes = list(self._OPENING.finditer(text))
        closing = _closings(text)
        for box in reversed(boxes):
            if (end := closing.get(box.end() - 1)) is not None:
                answer = text[box.end() : end].strip() or None
                return Read(answer, text[: box.start()].strip() or None, answer is not None and len(boxes) == 1)
        return Read(None, text.strip() or None, False)


def _closings(text: str) -> dict[int, int]:
    """Where each opening brace that is closed is closed, by its place; in one pass, for a text may open thousands."""
    opened: list[int] = []
    closed: dict[int, int] = {}
    for sign in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if sign[0].endswith("{") and sign[0] != r"\{":
            opened.append(sign.end() - 1)
        elif sign[0] == "}" and opened:
            closed[opened.pop()] = sign.start()
    return closed


class PatternAnswer(AnswerFormat):
    """A regular expression of Python, searched for anywhere; of several matches the last.

    The answer is its group ``answer``, else its first other than ``thoughts``; thoughts are its group ``thoughts``, if
    it has one. Well formed is: one match, and an answer in it that is not empty.

    Args:
        pattern: with a group, such as ``(?i)final answer: *(.+)``.

    Raises:
        ValueError: no regular expression, or one without a group.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        try:
            self._compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"answer_format.pattern is {pattern!r}, no regular expression: {error}") from None
        named = self._compiled.groupindex
        groups = [place for place in range(1, self._compiled.groups + 1) if place != named.get("thoughts")]
        if not groups:
            raise ValueError(f"answer_format.pattern is {pattern!r}; it must have a group around the answer, '(...)'")
        self._answer = named.get("answer", groups[0])

    def read(self, text: str) -> Read:
        """The last match."""
        matches = list(self._compiled.finditer(text))
        if not matches:
            return Read(None, None, False)
        named = self._compiled.groupindex
        answer = (matches[-1][self._answer] or "").strip() or None
        thoughts = matches[-1]["thoughts"] if "thoughts" in named else None
        return Read(answer, thoughts, answer is not None and len(matches) == 1)


class FunctionAnswer(AnswerFormat):
    """A function of one's own: from the text to the answer, or None where there is none; then it is not well formed.

    Args:
        function: its dotted name, in a recipe.

    Raises:
        ValueError: it cannot be called with a text alone.
    """

    def __init__(self, function: Callable[[str], str | None]) -> None:
        self.function = function
        try:
            inspect.signature(function).bind("a text")
        except TypeError as error:
            raise ValueError(f"answer_format.function cannot be called with a text: {function!r} ({error})") from None
        except ValueError:  # of C, without a signature: its first call tells
            pass

    def read(self, text: str) -> Read:
        """What the function says; ValueError where it raises, or that is neither a text nor None."""
        try:
            answer = self.function(text)
        except Exception as error:
            said = f"answer_format.function {self._name()} raised {type(error).__name__} ({error}) on {text[:80]!r}"
            raise ValueError(f"{said}; it must give a text, or None for no answer") from error
        if answer is not None and not isinstance(answer, str):
            raise ValueError(f"answer_format.function gave {answer!r}; it must give a text, or None for no answer")
        return Read(answer, None, answer is not None)

    def __repr__(self) -> str:
        return f"FunctionAnswer({self._name()})"

    def _name(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"{self.function.__module__}.{name}"


FormatName = Literal["whole", "think_answer", "last_line", "boxed"]


def named_format(chosen: AnswerFormat | str) -> AnswerFormat:
    """The format that a recipe names.

    Args:
        chosen: ``whole``, ``think_answer``, ``last_line`` or ``boxed``; or a format, which is returned.

    Raises:
        ValueError: another name.
    """
    if isinstance(chosen, AnswerFormat):
        return chosen
    kinds = (WholeAnswer, TaggedAnswer, LastLine, BoxedAnswer)
    by_name: dict[str, Callable[[], AnswerFormat]] = dict(zip(get_args(FormatName), kinds, strict=True))
    if chosen not in by_name:
        raise ValueError(
            f"policy.answer_format is {chosen!r}; it must be one of {', '.join(by_name)}, or have a class_path"
        )
    return by_name[chosen]()


#: What of a completion an oracle is shown.
Sees = Literal["answer", "thoughts", "both"]


def checked_sees(sees: Sees) -> Sees:
    """The same, if it is one; else ValueError."""
    if sees not in get_args(Sees):
        raise ValueError(f"oracle.sees is {sees!r}; it must be 'answer', 'thoughts' or 'both'")
    return sees


def shown(sees: Sees, texts: Sequence[str], reads: Sequence[Read]) -> tuple[str, ...]:
    """Completions as a judge sees them.

    Args:
        sees: ``answer`` (empty where there is none), ``thoughts`` (likewise), or ``both``: the text as it was written.
        texts: completions.
        reads: of the same.
    """
    if sees == "both":
        return tuple(texts)
    return tuple((read.answer if sees == "answer" else read.thoughts) or "" for read in reads)
