"""Which option an answer names, as chat models say it: by letter or by text, and never by a guess.

What is read, the surest first: a text that is an option's; a letter that is called the answer; a letter that the
answer begins with or that stands alone; a letter that is called an option, or stands in brackets; an option's text
within the answer. What is denied ("not A", "A is wrong", "not a cat") names nothing. Where two options are named by
what is equally sure, or joined ("A or B"), or letter and text contradict each other, none is.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from orlaif.evaluation.figures import numbers
from orlaif.evaluation.text_metrics import normalize_answer

#: "A. a dog", "(A) a dog", "A) a dog": the letter that an option may carry.
_LABEL = re.compile(r"^\s*\(?([A-Z])[.):]\s+")
#: A letter that is no part of a word, in brackets or not.
_LETTER = re.compile(
    r"(?<![a-zA-ZÀ-ɏ0-9_&+#-])(?<![a-zA-Z]['’])([(\[{]?)([A-Za-z])([)\]}]?)(?![a-zA-ZÀ-ɏ0-9_&+#]|['’][a-zA-Z]|-\w)"
)
_CALLED = (
    r"(?:\s|is|are|was|would|should|must|will|be|to|seems|the|therefore|thus|clearly|definitely|probably|likely|most|"
)
_CALLED += r"option|choice|letter|answer|candidate|number|indeed|[:：=,.\"'“‘>→|-]|–|—|是|为|應該|应该|应|选项|選項)*$"
#: What calls a letter the answer, up to that letter.
_ANSWER = re.compile(
    r"(?:\b(?:answer|ans|solution|conclusion|verdict|response)\b|\b(?:correct|right|best|true|final|chosen|likely)\s+"
    r"(?:option|choice|one|letter|candidate)\b|\b(?:choose|chose|chosen|pick|picked|select|selected|opt\s+for|"
    r"go(?:ing)?\s+with|vote\s+for|settle\s+(?:on|for)|mark|say)\b|答案|[选選](?:择|擇)?)"
    r"(?:\s+(?:of|to|for|in|about)\b[^.;:!?\n]{0,60}?\s(?=is\b|would\b|must\b|should\b))?" + _CALLED,
    re.IGNORECASE,
)
#: What calls it an option, or leads to it with no more ado ("It must be B").
_OPTION = re.compile(
    r"\b(?:option|choice|letter|candidate)" + _CALLED + r"|"
    r"\b(?:it|that|this|so|hence|thus|therefore|think|believe|guess|maybe|perhaps|probably|definitely|certainly|surely|"
    r"clearly|obviously|likely|leaves|leaving|remains|it['’]?s|that['’]?s|sure)" + _CALLED + r"|[→]\s*$|[-=]>\s*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:n['’]t|\b(?:not|never|nor|neither|than|instead\s+of|rather\s+than|except(?:\s+for)?|excluding|unlike|without|against|"
    r"(?:rules?|ruled|ruling)\s+out|eliminat(?:es?|ed|ing)|(?:any|every)thing\s+but|all\s+but|cannot|不是|不选))\s*(?:be\s+)?"
    r"(?:(?:the|answer|option|choice|letter)\s+)*$",
    re.IGNORECASE,
)
#: Of a list: "neither A, C nor D", "it can't be A or C".
_DENIED_TOO = re.compile(
    r"(?i:n['’]t\s+be|\b(?:neither|cannot\s+be|eliminat(?:es?|ed|ing)|rul(?:es?|ed|ing)\s+out|except|excluding))\s+"
    r"(?:[(\[]?[A-Z][)\]]?\s*(?:,\s*(?:and|or|nor)?|and|or|nor|/|&)\s*)+$"
)
_WRONG = re.compile(
    r"\s*(?:(?:is|are|was|seems|looks|would\s+be|can|could|does|do|has|must)\s+)?(?:(?:not|never)\b(?!\s+[(\[]?[A-Z]\b)|"
    r"clearly\s+wrong|wrong\b|incorrect\b|false\b|impossible\b|out\b|ruled\s+out|eliminated|excluded|cannot\b|"
    r"(?:is|are|was|does|do|can|could|would|has|wo)n['’]t\b)",
    re.IGNORECASE,
)
#: What may follow a letter that an answer begins with; anything else makes "A" an article and "B" the start of a name.
_GOES_ON = re.compile(
    r"\s*(?:$|[.,;:!?)\]/|(\n]|[-–—]+\s)|\s+(?:because|since|as|for|given|due|based|therefore|it|this|that|the|an?|there|they|"
    r"he|she|is\s+(?:the\b|correct|right|true|best|my\b|what|most)|seems|looks|would|must|should|not|rather|"
    r"instead|over|fits|but|and|or)\b",
    re.IGNORECASE,
)
_NAME_OF_I = re.compile(r"\s*(?:$|[.:)\]]\s*(?:$|\n|[A-Z])|\n)")
#: From a letter that is denied to the one that stands for it: "not A but B".
_INSTEAD = re.compile(
    r"\s*[,;:.]?\s*(?:(?:but|rather|so|hence|it\s+is|it['’]s|is|the|option|answer|choice|correct|right)\s+)*",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"\s+(?:is|fits|matches|seems|looks|would\s+be|must\s+be)\s+(?:the\s+)?(?:most\s+)?"
    r"(?:best|correct|right|accurate|answer|likely|true|one)\b",
    re.IGNORECASE,
)
#: Somebody who thinks better of it.
_CORRECTED = re.compile(r"\S[\s,.]{0,5}\b(?:no|wait|actually|sorry|correction|hmm)\b\s*[,.:!—-]", re.IGNORECASE)
_JOINT = re.compile(
    r"\s*(?:[.?!]\s*\b(?:or|and)\b|,|/|\||&|\+|;|\bor\b|\band\b|或|和|、)[\s,]*"
    r"(?:(?:or|and|maybe|perhaps|possibly|even|also|option|choice|both|either)[\s,]+)*",
    re.IGNORECASE,
)
_ALONE_BEFORE, _ALONE_AFTER = re.compile(r"(?:^|[.!?\n:])\s*$"), re.compile(r"\s*(?:$|[.!?]\s*(?:$|\n)|\n)")
_DENYING_WORDS = frozenset(
    ["not", "no", "never", "nor", "neither", "without", "isnt", "arent", "wasnt", "cannot", "except"]
)
_PREAMBLE = re.compile(
    r"^(?:so|thus|therefore|hence|well)?,?\s*(?:(?:the|my)\s+)?(?:(?:final|correct|best|right)\s+)*"
    r"(?:(?:answer|option|choice)(?:\s+is|\s*[:=])*|it\s+is|it['’]s|this\s+is|that\s+is|they\s+are|i\s+see|"
    r"there\s+is|there\s+are)\s*[:,]?\s+",
    re.IGNORECASE,
)


def choice(answer: str, options: Sequence[str]) -> int | None:
    """Which of the options an answer names.

    Args:
        answer: free text: ``B``, ``**(b)**``, ``The correct answer is B.``, ``B because ...``, an option's text.
        options: the options' texts, with or without their letter (``A. a dog``).

    Returns:
        Its place, or None where the answer names none or could mean more than one.
    """
    labels, texts = _labelled(options)
    said = final_answer(answer)
    same = [i for i, text in enumerate(texts) if _same(said, text)]
    if len(same) == 1:
        return same[0]
    tokens = _tokens(said)
    letters = _stated(said, tokens)
    if letters is None:
        return _by_text(said, texts)
    if len(letters) != 1:
        return None
    (letter,) = letters
    place = labels.get(letter)
    rests = [said[token.end :].lstrip(" .:)-,") for token in tokens if token.letter == letter][:2]
    rest = [i for i, text in enumerate(texts) if any(_same(one, text) for one in rests)]
    return place if not rest or rest == [place] else None


def same_choice(answer: str, reference: str, options: Sequence[str]) -> float:
    """1 if answer and reference name the same option, else 0."""
    expected = choice(reference, options)
    return float(expected is not None and choice(answer, options) == expected)


def final_answer(text: str) -> str:
    r"""What an answer comes down to: without thoughts, tags, ``\boxed{}`` and Markdown.

    Args:
        text: ``<think>...</think> <answer>**B**</answer>``.

    Returns:
        ``B``; empty where thoughts have no end, or two answers that differ are marked.
    """
    text = without_thoughts(unicodedata.normalize("NFKC", text))
    for marked in (r"<answer>(.*?)(?:</answer>|$)", r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"):
        inner = list(dict.fromkeys(part.strip() for part in re.findall(marked, text, re.DOTALL | re.IGNORECASE)))
        if len(inner) > 1:
            return ""
        text = inner[0] if inner else text
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\*\*|__|[*`#$]|\\[()\[\]]|<\|?/?\w+\|?>|^\s*[->•]\s+", "", text).strip().strip("\"'“”‘’").strip()


def without_thoughts(text: str) -> str:
    """What follows the thoughts of a model that thinks aloud; empty where they have no end."""
    text = re.split(r"</think(?:ing)?>|◁/think▷", text)[-1]
    return "" if re.search(r"<think(?:ing)?>|◁think▷", text) else text


@dataclass(frozen=True)
class _Token:
    """A letter that stands alone: where, whether both brackets are there, and whether it is denied."""

    letter: str
    start: int
    end: int
    bracketed: bool
    denied: bool


def _labelled(options: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Places by letter, and the texts without letters, where all options carry different ones."""
    carried = [match[1] for option in options if (match := _LABEL.match(option))]
    if len(carried) == len(options) and len(set(carried)) == len(carried):
        return {letter: i for i, letter in enumerate(carried)}, [_LABEL.sub("", option) for option in options]
    return dict(zip(string.ascii_uppercase, range(len(options)), strict=False)), list(options)


def _tokens(said: str) -> list[_Token]:
    """All letters in a text that may stand for an option."""
    tokens: list[_Token] = []
    for match in _LETTER.finditer(said):
        before, after = _before(said, match.start()), said[match.end() :]
        if not match[3] and _is_word(match[2], before, after):
            continue
        denied = bool(_DENIED.search(before) or _DENIED_TOO.search(before) or _WRONG.match(after))
        if tokens and tokens[-1].denied and _JOINT.fullmatch(said[tokens[-1].end : match.start()]) and _both(before):
            denied = True
        tokens.append(_Token(match[2].upper(), match.start(), match.end(), bool(match[1] and match[3]), denied))
    return tokens


def _before(said: str, place: int) -> str:
    """What stands before a place, as far as it may say something of it."""
    return said[max(0, place - 160) : place]


def _is_word(letter: str, before: str, after: str) -> bool:
    """Whether a letter without a bracket is a word: "a dog", "A dog", "I see", a small letter within a sentence."""
    if letter == "I":
        return not _NAME_OF_I.match(after)
    if letter == "A" and re.search(r"\b(?:option|choice|letter|answer)\s+$", before, re.IGNORECASE):
        return False
    if letter.islower() and before.strip() and not (_ANSWER.search(before) or _OPTION.search(before)):
        return True
    return (letter == "A" or letter.islower()) and not _GOES_ON.match(after)


def _both(before: str) -> bool:
    """Whether a denial reaches over the joint: "neither A nor B", "not A or B"."""
    return re.search(r"\b(?:nor|or)\W*$", before, re.IGNORECASE) is not None


def _stated(said: str, tokens: Sequence[_Token]) -> set[str] | None:
    """The letters that an answer states, by the surest kind of statement in it; None where there is no statement."""
    for one, other in pairwise(tokens):
        joined = _JOINT.fullmatch(said[one.end : other.start])
        if joined and not one.denied and not other.denied and one.letter != other.letter:
            return {one.letter, other.letter}
    meant = [token for token in tokens if not token.denied]
    if _CORRECTED.search(said) and len(letters := {token.letter for token in meant}) > 1:
        return letters
    called = {t.letter for t in meant if _ANSWER.search(_before(said, t.start))}
    leads = {t.letter for t in meant if not said[: t.start].strip() and (t.bracketed or _GOES_ON.match(said[t.end :]))}
    alone = {
        t.letter for t in meant if _ALONE_BEFORE.search(_before(said, t.start)) and _ALONE_AFTER.match(said[t.end :])
    }
    # "A? Not A. The answer is B.": who takes back what he began with has not stated it.
    first, denied = leads | alone, {t.letter for t in tokens if t.denied}
    listed = {
        t.letter
        for t in tokens
        if re.search(r"(?:^|\n)\s*$", _before(said, t.start)) and re.match(r"[.):]?\s*\S", said[t.end :])
    }
    if called:
        # A list of the options that comes first states nothing; another answer that comes first does.
        return called if len(listed) > 1 else called | (first - denied)
    if len(listed) > 1:
        return listed
    optional = {
        t.letter for t in meant if t.bracketed or _OPTION.search(_before(said, t.start)) or _RIGHT.match(said[t.end :])
    } | {
        other.letter
        for one, other in pairwise(tokens)
        if one.denied and not other.denied and _INSTEAD.fullmatch(said[one.end : other.start])
    }
    for stated in (first - denied or first, optional):
        if stated:
            return stated
    return set() if tokens and not meant and not said[: tokens[0].start].strip() else None


def _same(said: str, text: str) -> bool:
    """Whether an answer is an option's text; numbers by their value, for their signs and points are not punctuation."""
    if (figures := numbers(text)) and _is_figure(text):
        return _is_figure(said) and numbers(said) == figures
    whole, option = normalize_answer(said), normalize_answer(text)
    return whole == option if option else said.strip(" .").casefold() == text.strip(" .").casefold()


def _is_figure(text: str) -> bool:
    return re.fullmatch(r"\s*[-+−]?[\d.,]+\s*%?\.?\s*", text) is not None and any(c.isdigit() for c in text)


def _by_text(said: str, texts: Sequence[str]) -> int | None:
    """The one option whose text stands in an answer and is not denied there."""
    plain = _PREAMBLE.sub("", said)
    same = [i for i, text in enumerate(texts) if _same(plain, text)]
    if len(same) == 1:
        return same[0]
    first = normalize_answer(re.split(r"[,.;:!\n]", said)[0])
    for i, text in enumerate(texts):  # "Yes, there is no dog."
        if normalize_answer(text) == first and first in ("yes", "no", "true", "false"):
            return i
    if all(_is_figure(text) for text in texts):
        figures = numbers(said)
        named = [i for i, text in enumerate(texts) if len(figures) == 1 and numbers(text) == figures]
    else:
        # Who corrects himself denies what came before, and the word for it stands before what he means.
        denials = frozenset() if _CORRECTED.search(said) else _DENYING_WORDS
        whole = normalize_answer(said)
        named = [i for i, text in enumerate(texts) if _stands_in(whole, normalize_answer(text), denials)]
    return named[0] if len(named) == 1 else None


def _stands_in(whole: str, text: str, denials: frozenset[str]) -> bool:
    """Whether a text stands in a longer one, between words, at least once without a denial before it."""
    if not text:
        return False
    if not re.search(r"[a-z0-9]", text):  # scripts without blanks between words
        return text in whole
    for match in re.finditer(rf"(?<!\S){re.escape(text)}(?!\S)", whole):
        before = whole[: match.start()].split()[-2:]
        if not denials.intersection(before) and before not in (["rather", "than"], ["instead", "of"]):
            return True
    return False
