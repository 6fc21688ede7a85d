"""What is asked: text, images and videos, in the order in which a conversation has them.

The common case, a question about one video (with earlier turns or without), is said by ``video`` and ``question``.
Whatever else a conversation can be is said by its turns, each of parts in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_video(
    of: str, start_s: float | None, end_s: float | None, frames: Sequence[str] | None, fps: float, whose: str
) -> None:
    """Raise ValueError for a segment that is none, or frames that are no clip."""
    start = 0.0 if start_s is None else start_s
    _check(start >= 0, f"{of}.start_s is {start} ({whose}); it must be 0 or more seconds")
    _check(end_s is None or end_s > start, f"{of}.end_s is {end_s} ({whose}); it must lie after start_s = {start}")
    number = len(frames or ())
    _check(frames is None or number >= 2, f"{of}.frames has {number} ({whose}); a clip needs 2 or more")
    _check(fps > 0, f"{of}.frames_fps is {fps} ({whose}); it must be positive")


@dataclass(frozen=True)
class Text:
    """Words of a turn.

    Args:
        text: not empty.

    Raises:
        ValueError: there are none.
    """

    text: str

    def __post_init__(self) -> None:
        _check(bool(self.text.strip()), "Text.text is empty; leave the part out")


@dataclass(frozen=True)
class Image:
    """A picture of a turn.

    Args:
        path: of the file: a picture, or with ``at_s`` a video.
        at_s: the picture is the frame that the video has on display at this time, in seconds from its start.

    Raises:
        ValueError: no path, or a time before the start.
    """

    path: str
    at_s: float | None = None

    def __post_init__(self) -> None:
        _check(bool(self.path.strip()), "Image.path is empty; it must name a file")
        _check(self.at_s is None or self.at_s >= 0, f"Image.at_s is {self.at_s} ({self.path!r}); it must be 0 or more")


@dataclass(frozen=True)
class Video:
    """A video of a turn.

    Args:
        path: of the file.
        start_s: start of the segment that is shown, in seconds of the file's own time line.
        end_s: end of that segment, in seconds.
        frames: paths of images, in order, that stand for the video; ``path`` then only names them in errors.
        frames_fps: images of ``frames`` per second.

    Raises:
        ValueError: no path, or the segment is not one.
    """

    path: str
    start_s: float | None = None
    end_s: float | None = None
    frames: tuple[str, ...] | None = None
    frames_fps: float = 1.0

    def __post_init__(self) -> None:
        _check(bool(self.path.strip()), "Video.path is empty; it must name a file")
        _check_video("Video", self.start_s, self.end_s, self.frames, self.frames_fps, f"video {self.path!r}")


Part = Text | Image | Video


@dataclass(frozen=True)
class Turn:
    """What one side says at a time.

    Args:
        role: who says it.
        parts: one or more, in their order; the assistant's is text, a user's has text among its parts.

    Raises:
        ValueError: no text, or an assistant that shows something.
    """

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        _check(self.role in ("user", "assistant"), f"Turn.role is {self.role!r}; it must be 'user' or 'assistant'")
        _check(bool(self.words), f"Turn.parts of the {self.role} is {list(self.parts)}; a turn needs text")
        if self.role == "assistant":
            _check(not self.media, f"Turn.parts of the assistant has {self.media[:1]}; only the user shows something")

    @property
    def words(self) -> str:
        """Its texts, with a space between two."""
        return " ".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def media(self) -> tuple[Image | Video, ...]:
        """Its images and videos, in their order."""
        return tuple(part for part in self.parts if not isinstance(part, Text))

    @property
    def plain(self) -> bool:
        """Whether it is one text and nothing else."""
        return len(self.parts) == 1 and isinstance(self.parts[0], Text)


def user(*parts: Part | str) -> Turn:
    """A user's turn; a text may be given as it is."""
    return Turn("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def assistant(text: str) -> Turn:
    """An assistant's turn."""
    return Turn("assistant", (Text(text),))


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question, as a dataset adapter yields it: by ``question``, ``video`` and ``history``, or else by ``turns``.

    ``turns`` that ask one question about one video, which comes first, or about nothing but text, are kept as
    ``video``, ``question`` and ``history``, so that the same question is the same prompt however it was said;
    :meth:`conversation` gives the turns of any prompt.

    Args:
        id: unique within the dataset; errors and predictions name it.
        video: path of the video; empty where there is none. Of ``turns``, the video if it is all that they show.
        question: what is asked, not empty. Of ``turns``, the words of the last one.
        answer: the reference answer, where the data has one.
        options: the answers to choose from, where the data has them.
        start_s: start of the segment asked about, in seconds of the file's own time line.
        end_s: end of that segment, in seconds.
        category: kind of question, for results broken down by kind.
        frames: paths of images, in order, that stand for the video; ``video`` then only names them in errors.
        frames_fps: images of ``frames`` per second.
        history: earlier questions and answers of the same conversation, which the model is shown. Of ``turns``, their
            words.
        tags: further labels, for results broken down by them.
        turns: of user and assistant, the user's first and last; instead of video, question and history.

    Raises:
        ValueError: a required field is empty, the segment is not one, or ``turns`` are none that alternate.
    """

    id: str
    video: str = ""
    question: str = ""
    answer: str | None = None
    options: tuple[str, ...] | None = None
    start_s: float | None = None
    end_s: float | None = None
    category: str | None = None
    frames: tuple[str, ...] | None = None
    frames_fps: float = 1.0
    history: tuple[tuple[str, str], ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        kind = type(self).__name__
        _check(bool(self.id), f"{kind}.id is empty; every prompt needs an id")
        if self.turns:
            self._say_in_short()
        _check(bool(self.question.strip()), f"{kind}.question is empty (prompt {self.id!r})")
        seen = self.start_s is not None or self.end_s is not None or self.frames is not None
        _check(
            bool(self.video.strip()) or not (self.video or seen),
            f"{kind}.video is empty (prompt {self.id!r})",
        )
        _check_video(kind, self.start_s, self.end_s, self.frames, self.frames_fps, f"prompt {self.id!r}")

    def _say_in_short(self) -> None:
        """Set the fields of the common case from ``turns``; raises ValueError for turns that are no question."""
        said, kind = self.turns, type(self).__name__
        roles = [turn.role for turn in said]
        _check(
            len(said) % 2 == 1 and roles == [("user", "assistant")[i % 2] for i in range(len(said))],
            f"{kind}.turns is of {roles} (prompt {self.id!r}); user and assistant take turns, the user first and last",
        )
        media = [part for turn in said for part in turn.media]
        alone = media[0] if len(media) == 1 and isinstance(media[0], Video) else None
        short: dict[str, object] = {
            "question": said[-1].words,
            "history": tuple((said[i].words, said[i + 1].words) for i in range(0, len(said) - 1, 2)),
        }
        shown = alone or Video("none")
        short |= {name: getattr(shown, name) for name in ("start_s", "end_s", "frames", "frames_fps")}
        short["video"] = "" if alone is None else alone.path
        plain = {name: Prompt.__dataclass_fields__[name].default for name in short}
        for name, value in short.items():
            given = getattr(self, name)
            _check(
                given in (plain[name], value),
                f"{kind}.{name} is {given!r}, and turns say {value!r} (prompt {self.id!r}); say it by one of the two",
            )
            object.__setattr__(self, name, value)
        first = said[0].parts[1:] if said[0].parts[0] == alone else said[0].parts
        if len(first) == 1 and isinstance(first[0], Text) and all(turn.plain for turn in said[1:]):
            object.__setattr__(self, "turns", ())

    def conversation(self) -> tuple[Turn, ...]:
        """What is said and shown, turn by turn: the video, where there is one, at the beginning of the first."""
        if self.turns:
            return self.turns
        shown = (Video(self.video, self.start_s, self.end_s, self.frames, self.frames_fps),) if self.video else ()
        said = [text for pair in self.history for text in pair] + [self.question]
        return tuple(
            user(*(shown if i == 0 else ()), text) if i % 2 == 0 else assistant(text) for i, text in enumerate(said)
        )

    @property
    def media(self) -> tuple[Image | Video, ...]:
        """All images and videos that it shows, in their order."""
        return tuple(part for turn in self.conversation() for part in turn.media)

    @property
    def shows(self) -> str:
        """What it shows, in words."""
        kinds = [type(part).__name__.lower() for part in self.media]
        counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        return " and ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items()) or "no image or video"

    def asking(self, question: str) -> Prompt:
        """Another question about what this one shows: the same media in their order, and then these words alone."""
        if not self.turns:
            return Prompt(id=self.id, video=self.video, question=question)
        return Prompt(id=self.id, turns=(user(*self.media, question),))


@dataclass(frozen=True, kw_only=True)
class VideoPrompt(Prompt):
    """A question about one video: a :class:`Prompt` with a ``video``.

    Raises:
        ValueError: as for a Prompt, or no video.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(bool(self.video), f"VideoPrompt.video is empty (prompt {self.id!r})")


@dataclass(frozen=True, kw_only=True)
class PreferencePrompt(Prompt):
    """A question with answers that have been compared: what a preference ranker learns from.

    Args:
        answers: two or more.
        ranks: of each, 0 = best, equal answers share a rank.

    Raises:
        ValueError: as for a Prompt, or answers and ranks that are no ranking.
    """

    answers: tuple[str, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(
            len(self.answers) >= 2, f"PreferencePrompt.answers has {len(self.answers)} (prompt {self.id!r}); 2 or more"
        )
        _check(
            len(self.ranks) == len(self.answers) and min(self.ranks) == 0,
            f"PreferencePrompt.ranks is {list(self.ranks)} (prompt {self.id!r}); expected one for each of "
            f"{len(self.answers)} answers, the best 0",
        )
