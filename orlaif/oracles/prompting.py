"""What a judge is asked, and how its answer is read: strictly, for a misread answer would be a made-up ranking."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orlaif.evaluation.choices import without_thoughts
from orlaif.evaluation.quoting import QUOTED_NOTE, quoted
from orlaif.types import CandidateGroup

LISTWISE_INSTRUCTIONS = (
    "You are shown frames of a video, a question about it, and candidate answers with letters. Order the candidates "
    "from best to worst: what the video shows decides, then how well the question is answered; length and style do not "
    "count. Candidates that are equally good share a place. Reply with one JSON object and nothing else, the letters "
    'from best to worst, equals in a list of their own: {"ranking": ["B", ["A", "D"], "C"]}'
)

#: Candidates of a ballot, which have a letter each.
MOST_CANDIDATES = len(string.ascii_uppercase)

#: Orders of one group: so many show each of that many candidates in every place, one way round and the other.
MOST_ORDERS = 2 * MOST_CANDIDATES

VERDICT_INSTRUCTIONS = (
    "You are shown frames of a video, a question about it, one candidate answer, and numbered questions about that "
    "candidate. Answer each numbered question with yes or no, by what the video shows. Reply with one JSON object and "
    'nothing else, a verdict for each question in their order: {"verdicts": ["yes", "no"]}'
)


def check_orders(name: str, number: int) -> None:
    """Raises ValueError where an oracle's ``name`` says that a group is read in no order, or in absurdly many."""
    if not 1 <= number <= MOST_ORDERS:
        raise ValueError(
            f"oracle.{name} is {number}; it must be 1 to {MOST_ORDERS}: each order is one more reading of every group, "
            "and 2 to 4 are usual"
        )


def opening(question: str) -> str:
    """The text that a judge reads before the candidates: the question, and how they are quoted."""
    return f"Question: {question}\n\nCandidates, {QUOTED_NOTE}:"


def inquiry(question: str, answer: str, questions: Sequence[str]) -> str:
    """What a judge is asked about one answer: the question it answers, the answer quoted, and numbered questions."""
    numbered = "\n".join(f"{i}. {one}" for i, one in enumerate(questions, 1))
    return f"Question: {question}\n\nCandidate, {QUOTED_NOTE}:\n{quoted(answer)}\n\nAbout the candidate:\n{numbered}"


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """A group as a judge sees it: each different answer once, in an order drawn for it, with a letter.

    Args:
        group: what is ranked.
        texts: the different answers in the order shown; letters are A, B, ...
        places: of each answer of the group, which of ``texts`` it is.
    """

    group: CandidateGroup
    texts: tuple[str, ...]
    places: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Letters of the texts, from A on, in their order."""
        return tuple(string.ascii_uppercase[: len(self.texts)])

    def asked(self, markup: Collection[str] = ()) -> str:
        """Question and lettered candidates, each a JSON string on one line.

        Args:
            markup: special tokens of the judge's tokenizer, which must not stand in a candidate as they are.
        """
        lines = [f"{label}: {quoted(text, markup)}" for label, text in zip(self.labels, self.texts, strict=True)]
        return f"{opening(self.group.prompt.question)}\n" + "\n".join(lines)

    def ranks(self, order: Sequence[Sequence[int]]) -> list[int]:
        """Ranks of the group's answers from the order of the texts, ``[[best, equal], [next], ...]``."""
        rank = {place: i for i, level in enumerate(order) for place in level}
        return [rank[place] for place in self.places]


def ballots(group: CandidateGroup, number: int, seed: int) -> list[Ballot]:
    """``number`` ballots of a group, the same ones whenever the same group comes again.

    The first is shuffled; every further one is the reverse of the one before or drawn anew, in turn, so that two of
    them already cancel a preference for the first or the last place.

    Args:
        group: at most 26 different answers; in another order they are shown in another order.
        number: of ballots.
        seed: of the orders.

    Raises:
        ValueError: more than 26 different answers.
    """
    texts = list(dict.fromkeys(group.answers))
    if len(texts) > MOST_CANDIDATES:
        raise ValueError(f"{len(texts)} different answers; a judge of lists takes at most {MOST_CANDIDATES}")
    generator = random.Random(json.dumps([seed, group.prompt.id]))
    drawn: list[Ballot] = []
    for i in range(number):
        order = list(reversed(drawn[-1].texts)) if i % 2 else generator.sample(texts, len(texts))
        places = tuple(order.index(answer) for answer in group.answers)
        drawn.append(Ballot(group=group, texts=tuple(order), places=places))
    return drawn


def parse_order(reply: str, labels: Sequence[str]) -> list[list[int]]:
    """The order in a judge's reply.

    Args:
        reply: text with exactly one JSON object that has ``ranking``; thoughts and prose around it do not matter.
        labels: the letters to be ordered.

    Returns:
        Places in ``labels``, best level first.

    Raises:
        ValueError: nothing, or more than one thing, to read; a letter missing, twice or unknown.
    """
    levels = _only(reply, "ranking")
    if not isinstance(levels, list):
        raise ValueError(f"the ranking is no list in the reply {_short(reply)}")
    order = [[level] if isinstance(level, str) else level for level in levels]
    if not all(isinstance(level, list) and all(isinstance(label, str) for label in level) for level in order):
        raise ValueError(f"the ranking is not made of letters in the reply {_short(reply)}")
    named = [label.strip().upper() for level in order for label in level]
    if sorted(named) != sorted(labels):
        raise ValueError(f"the ranking has {', '.join(named) or 'nothing'} instead of each of {', '.join(labels)} once")
    return [[labels.index(label.strip().upper()) for label in level] for level in order if level]


def parse_verdicts(reply: str, number: int) -> list[bool]:
    """The verdicts in a judge's reply.

    Args:
        reply: text with exactly one JSON object that has ``verdicts``; thoughts and prose around it do not matter.
        number: of questions.

    Returns:
        Whether it said yes, for each question.

    Raises:
        ValueError: nothing, or more than one thing, to read; another number of verdicts; one that is not yes or no.
    """
    said = _only(reply, "verdicts")
    if not isinstance(said, list) or len(said) != number:
        raise ValueError(f"the verdicts are no list of {number} in the reply {_short(reply)}")
    words = [one.strip().lower() if isinstance(one, str) else one for one in said]
    if not all(isinstance(word, bool) or word in ("yes", "no") for word in words):
        raise ValueError(f"a verdict is neither yes nor no in the reply {_short(reply)}")
    return [word is True or word == "yes" for word in words]


def _only(reply: str, name: str) -> object:
    """What the one JSON object in ``reply`` that has ``name`` says there."""
    text = without_thoughts(reply)
    found = []
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError(f"objects without end in the reply {_short(text)}") from None
        except ValueError:
            end = start + 1
        else:
            if isinstance(value, dict) and name in value:
                found.append(value[name])
        start = text.find("{", end)
    if len(found) != 1:
        raise ValueError(f"{len(found)} {name.rstrip('s')}s in the reply {_short(text)}")
    return found[0]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, unless it says one thing twice; JSON would take the last without a word."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _short(reply: str) -> str:
    return repr(reply if len(reply) <= 200 else f"{reply[:200]}...")
