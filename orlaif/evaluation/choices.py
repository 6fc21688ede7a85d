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
from dataclasses import dataclass, replace
from itertools import pairwise

from orlaif.evaluation import choice_words as words
from orlaif.evaluation.figures import numbers
from orlaif.evaluation.text_metrics import normalize_answer


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
    if (numbered := _by_number(said, texts)) is not None:
        return numbered
    if changes := list(words.ACTUALLY.finditer(said)):
        corrected = choice(said[changes[-1].end() :], options)
        if corrected is not None or changes[-1]["no"]:
            return corrected
    said = words.IDIOM.sub("", words.MARK.sub(r"\1\n", said) if words.MARKED.fullmatch(said) else said)
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
    # "2½" and "10³" would become 21⁄2 and 103.
    text = re.sub(r"(?<=\d)(?=[¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])|(?<=\d)(?=[⁻⁰¹²³⁴⁵⁶⁷⁸⁹])(?<![⁰¹²³⁴⁵⁶⁷⁸⁹])", _apart, text)
    text = without_thoughts(unicodedata.normalize("NFKC", text))
    for marked in (r"<answer>(.*?)(?:</answer>|$)", r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"):
        inner = list(dict.fromkeys(part.strip() for part in re.findall(marked, text, re.DOTALL | re.IGNORECASE)))
        if len(inner) > 1:
            return ""
        text = inner[0] if inner else text
    text = re.sub(r"<([A-Z])>(?!.*</\1>)", r"(\1)", text, flags=re.DOTALL)  # a letter in brackets, no tag
    text = text.replace("。", ". ")
    bare = re.sub(r"^[✅✔✓☑👉\ufe0f\s]+|[✅✔✓☑\ufe0f\s]+$", "", text)
    if not re.search("[\n✅✔✓☑✗✘❌]", bare):  # else marks are verdicts of options
        text = bare
    text = re.sub(r"(?<!\w)_+(\w+?)_+(?!\w)", r"\1", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\*\*|__|[*`#$]|\\[()\[\]]|<\|?/?\w+\|?>|^\s*[->•]\s+", "", text).strip().strip("\"'“”‘’").strip()


def _apart(gap: re.Match[str]) -> str:
    return "^" if gap.string[gap.end()] in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹" else " "


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
    carried = [match[1] for option in options if (match := words.LABEL.match(option))]
    if len(carried) == len(options) and len(set(carried)) == len(carried):
        return {letter: i for i, letter in enumerate(carried)}, [words.LABEL.sub("", option) for option in options]
    return dict(zip(string.ascii_uppercase, range(len(options)), strict=False)), list(options)


def _tokens(said: str) -> list[_Token]:
    """All letters in a text that may stand for an option."""
    tokens: list[_Token] = []
    for match in words.LETTER.finditer(said):
        before, after = _before(said, match.start()), said[match.end() :]
        if not match[3] and _is_word(match[2], before, after):
            continue
        denied = any(denial.search(before) for denial in (words.DENIED, words.DENIED_TOO, words.DENIED_FAR))
        denied = denied or any(denial.match(after) for denial in (words.WRONG, words.WRONG_LISTED, words.OVERRULED))
        if (
            tokens
            and tokens[-1].denied
            and words.JOINT.fullmatch(said[tokens[-1].end : match.start()])
            and _both(before)
        ):
            denied = True
        tokens.append(_Token(match[2].upper(), match.start(), match.end(), bool(match[1] and match[3]), denied))
    return _denied_together(said, tokens)


def _denied_together(said: str, tokens: list[_Token]) -> list[_Token]:
    """The same, where the denial behind a list is that of all its letters: "A and B are wrong"."""
    plural = False
    for i in range(len(tokens) - 1, 0, -1):
        one, other = tokens[i - 1], tokens[i]
        plural = other.denied and (plural or words.PLURAL.match(said[other.end :]) is not None)
        if plural and not one.denied and words.JOINT.fullmatch(said[one.end : other.start]):
            tokens[i - 1] = replace(one, denied=True)
        else:
            plural = False
    return tokens


def _before(said: str, place: int) -> str:
    """What stands before a place, as far as it may say something of it."""
    return said[max(0, place - 160) : place]


def _is_word(letter: str, before: str, after: str) -> bool:
    """Whether a letter without a bracket is a word: "a dog", "A dog", "I see", a small letter within a sentence."""
    if letter == "I":
        return not words.NAME_OF_I.match(after)
    if letter == "A" and (words.CALLS.search(before) or words.MARK.match(after.lstrip())):
        return False
    if letter.islower() and before.strip() and not (words.ANSWER.search(before) or words.OPTION.search(before)):
        return True
    return (letter == "A" or letter.islower()) and not words.GOES_ON.match(after)


def _both(before: str) -> bool:
    """Whether a denial reaches over the joint: "neither A nor B", "not A or B"."""
    return re.search(r"\b(?:nor|or)\W*$", before, re.IGNORECASE) is not None


def _stated(said: str, tokens: Sequence[_Token]) -> set[str] | None:
    """The letters that an answer states, by the surest kind of statement in it; None where there is no statement."""
    meant, open_ = [token for token in tokens if not token.denied], _left_open(said, tokens)
    if open_:
        concluded = [t for t in meant if t.start > open_[-1].start and _is_concluded(said, t)]
        if not concluded:
            return {t.letter for t in open_}
        meant = [t for t in meant if t not in open_]
    if words.CORRECTED.search(said) and len(letters := {token.letter for token in meant}) > 1:
        return letters
    called = {t.letter for t in meant if words.ANSWER.search(_before(said, t.start))}
    leads = {
        t.letter for t in meant if not said[: t.start].strip() and (t.bracketed or words.GOES_ON.match(said[t.end :]))
    }
    alone = {
        t.letter
        for t in meant
        if words.ALONE_BEFORE.search(_before(said, t.start)) and words.ALONE_AFTER.match(said[t.end :])
    }
    # "A? Not A. The answer is B.": who takes back what he began with has not stated it.
    first, denied = leads | alone, {t.letter for t in tokens if t.denied}
    lines = [
        t for t in tokens if words.LINE.search(_before(said, t.start)) and re.match(r"[.):]?[^\S\n]*\S", said[t.end :])
    ]
    listed = {t.letter for t in lines}
    if called:
        # A list of the options that comes first states nothing; another answer that comes first does.
        return called if len(listed) > 1 or _spelt_out(said, tokens) else called | (first - denied)
    if len(listed) > 1:
        behind = [t for t in meant if t.start > lines[-1].start]
        rest = {t.letter for t in behind if t.letter in alone or t.letter in called or _is_optional(said, t)}
        return rest or {t.letter for t in lines if words.VERDICT.match(said[t.end :])} or listed
    optional = {t.letter for t in meant if t.bracketed or _is_optional(said, t)} | {
        other.letter
        for one, other in pairwise(tokens)
        if one.denied and not other.denied and words.INSTEAD.fullmatch(said[one.end : other.start])
    }
    later = {t.letter for t in meant if t.letter not in first and words.OPTION.search(_before(said, t.start))}
    if first and later:  # "B. It's C."
        return first | later
    for stated in (first - denied or first, optional):
        if stated:
            return stated
    return set() if tokens and not meant and not said[: tokens[0].start].strip() else None


def _left_open(said: str, tokens: Sequence[_Token]) -> list[_Token]:
    """The letters that are joined to another one: "A or B", "A and C"."""
    found: list[_Token] = []
    for one, other in pairwise(tokens):
        joined = words.JOINT.fullmatch(said[one.end : other.start])
        if joined and not one.denied and not other.denied and one.letter != other.letter:
            found += [one, other]
    return list(dict.fromkeys(found))


def _spelt_out(said: str, tokens: Sequence[_Token]) -> bool:
    """Whether a text begins with a list of at least three options in one line: "(A) a cat (B) a dog (C) ..."."""
    labelled = [t.letter for t in tokens[:3] if t.bracketed or re.match(r"[.):]\s", said[t.end :])]
    return labelled == ["A", "B", "C"]


def _is_concluded(said: str, token: _Token) -> bool:
    """Whether a letter is said to be the answer, before or behind it."""
    return bool(words.ANSWER.search(_before(said, token.start)) or words.RIGHT.match(said[token.end :]))


def _is_optional(said: str, token: _Token) -> bool:
    """Whether a letter is called an option, or led to, or said to be right."""
    return bool(words.OPTION.search(_before(said, token.start)) or words.RIGHT.match(said[token.end :]))


def _same(said: str, text: str) -> bool:
    """Whether an answer is an option's text; numbers by their value, for their signs and points are not punctuation."""
    if (figures := numbers(text)) and _is_figure(text):
        return _is_figure(said) and numbers(said) == figures
    whole, option = normalize_answer(said), normalize_answer(text)
    return whole == option if option else said.strip(" .").casefold() == text.strip(" .").casefold()


def _is_figure(text: str) -> bool:
    return re.fullmatch(r"\s*[-+−]?[\d.,]+\s*%?\.?\s*", text) is not None and any(c.isdigit() for c in text)


def _by_number(said: str, texts: Sequence[str]) -> int | None:
    """The option that an answer names by its number, where no option's text speaks of numbers itself."""
    match = words.BY_NUMBER.fullmatch(said)
    if not match or any(re.search(rf"\d|\b(?:{'|'.join(words.ORDINALS)})\b", text, re.IGNORECASE) for text in texts):
        return None
    place = int(match[1]) - 1 if match[1] else words.ORDINALS.index(match[2].lower())
    return place if place < len(texts) else None


def _by_text(said: str, texts: Sequence[str]) -> int | None:
    """The one option whose text stands in an answer and is not denied there."""
    plain = words.PREAMBLE.sub("", said)
    same = [i for i, text in enumerate(texts) if _same(plain, text)]
    if len(same) == 1:
        return same[0]
    clauses = [normalize_answer(clause) for clause in re.split(r"[,.;:!\n]", said)]
    normal = [normalize_answer(text) for text in texts]
    if clauses[0] in ("yes", "no", "true", "false") and clauses[0] in normal:  # "Yes, there is no dog."
        both = {clause for clause in clauses if clause in normal}  # "No, yes"
        return normal.index(clauses[0]) if len(both) == 1 else None
    if all(_is_figure(text) for text in texts):
        figures = numbers(said)
        named = [i for i, text in enumerate(texts) if len(figures) == 1 and numbers(text) == figures]
    else:
        # Who corrects himself denies what came before, and the word for it stands before what he means.
        denials = frozenset() if words.CORRECTED.search(said) else words.DENYING_WORDS
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
        absent = words.ABSENT.match(whole[match.end() :])  # "a cat is not visible", but "the cat is not black"
        if not absent and not denials.intersection(before) and before not in (["rather", "than"], ["instead", "of"]):
            return True
    return False
