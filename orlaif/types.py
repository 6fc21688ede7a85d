"""The hand-overs between the stages of a training step, and what rooms that do not import each other ask of each other.
What is asked and what is seen of it (``orlaif.prompt``, ``orlaif.media``) are imported here, for users of this module.
Longer than 300 lines because a newcomer who has read it knows every shape and every seam of the data's way.

Shape legend, used in every docstring of the project:

    P  prompts on this process       G  completions per prompt (the group)
    S  prompt tokens (padded left)   T  completion tokens (padded right)
    V  vocabulary                    F  frames of a clip

Every hand-over is a frozen, keyword-only dataclass that checks itself, so that a stage can trust what it is given.
The two exceptions that carry a failure across stages, :class:`VideoError` and :class:`OracleError`, live here as well,
and at the end the protocols by which the LightningModules, the evaluation and the DataModule speak to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from orlaif.answer_format import AnswerFormat, Read, Sees, shown
from orlaif.media import Media as Media
from orlaif.media import Picture as Picture
from orlaif.media import Seen as Seen
from orlaif.media import VideoClip as VideoClip
from orlaif.prompt import Image as Image
from orlaif.prompt import PreferencePrompt as PreferencePrompt
from orlaif.prompt import Prompt as Prompt
from orlaif.prompt import Text as Text
from orlaif.prompt import Turn as Turn
from orlaif.prompt import Video as Video
from orlaif.prompt import VideoPrompt as VideoPrompt


class VideoError(Exception):
    """A video that cannot be used.

    Args:
        path: the file, as the data names it.
        cause: what is wrong with it, in words a user can act on.
    """

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(path, cause)
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"


class OracleError(Exception):
    """An oracle that gave no ranking.

    Args:
        oracle: name of the oracle.
        prompt_id: the prompt whose group could not be ranked.
        cause: what went wrong.
    """

    def __init__(self, oracle: str, prompt_id: str, cause: str) -> None:
        super().__init__(oracle, prompt_id, cause)
        self.oracle = oracle
        self.prompt_id = prompt_id
        self.cause = cause

    def __str__(self) -> str:
        return f"oracle {self.oracle} gave no ranking for prompt {self.prompt_id!r}: {self.cause}"


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """P prompts, decoded and tokenised by the model's own processor.

    Args:
        prompts: P prompts.
        clips: what is seen of each: the clip of its video, or its media (:class:`~orlaif.media.Media`).
        input_ids: i64[P, S], padded on the left.
        attention_mask: i64[P, S], 0 on padding.
        mm_inputs: everything else that the processor returned; a list of P tensors where clips do not fit into one.
        texts: the P prompts as the chat template has them, before the processor, for engines with one of their own.

    Raises:
        ValueError: the parts disagree on P or S, or the padding is not on the left.
    """

    prompts: tuple[Prompt, ...]
    clips: tuple[Seen, ...]
    input_ids: Tensor
    attention_mask: Tensor
    mm_inputs: Mapping[str, Any]
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        p = len(self.prompts)
        _check(len(self.clips) == p, f"PromptBatch has {p} prompts and {len(self.clips)} clips")
        _check(
            self.input_ids.ndim == 2 and self.input_ids.shape[0] == p,
            f"PromptBatch.input_ids has shape {list(self.input_ids.shape)}; expected [{p}, S]",
        )
        _check(
            self.attention_mask.shape == self.input_ids.shape,
            f"PromptBatch.attention_mask has shape {list(self.attention_mask.shape)}; "
            f"expected {list(self.input_ids.shape)}",
        )
        _check(p == 0 or bool(self.attention_mask[:, -1].all()), "PromptBatch must be padded on the left")

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """The same batch with the model's inputs on ``device``; frames stay where they were decoded."""

        def move(value: Any) -> Any:
            if isinstance(value, list):  # a tensor for each prompt, where shapes do not allow one for all
                return [move(one) for one in value]
            return value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value

        return replace(
            self,
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            mm_inputs={name: move(value) for name, value in self.mm_inputs.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a loader hands to a stage: a batch, and how it came about. The batches of the Trainer are these.

    Args:
        batch: P prompts; none where all of their videos were left out.
        skipped: bad media that was left out of the batch (``on_bad_video: skip``).
        decode_s: seconds spent on decoding and processing the batch.
        wait_s: seconds that the step waited for it.
        following: the batches behind it, as many as the stage asked for (:class:`LooksAhead`) and the epoch has, on
            the CPU; None for one that could not be made, whose error comes with its own delivery.

    Raises:
        ValueError: a negative time.
    """

    batch: PromptBatch
    skipped: tuple[VideoError, ...] = ()
    decode_s: float = 0.0
    wait_s: float = 0.0
    following: tuple[PromptBatch | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("decode_s", "wait_s"):
            _check(getattr(self, name) >= 0, f"Delivery.{name} is {getattr(self, name)}; it must be 0 or more seconds")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Delivery:
        """The same with the batch's inputs on ``device``."""
        return replace(self, batch=self.batch.to(device, non_blocking))


@dataclass(frozen=True, kw_only=True)
class Completions:
    """G sampled answers to each of P prompts.

    Args:
        ids: i64[P, G, T], the end-of-sequence token included where there is one.
        mask: bool[P, G, T], True on the tokens of the completion: a run from the left.
        texts: P tuples of G decoded answers.
        logps: f32[P, G, T], log-prob of each token under the policy that sampled it (0 where masked), if it is known.

    Raises:
        ValueError: the parts disagree on their shapes, or the mask has holes.
    """

    ids: Tensor
    mask: Tensor
    texts: tuple[tuple[str, ...], ...]
    logps: Tensor | None = None

    def __post_init__(self) -> None:
        _check(
            self.ids.ndim == 3 and self.ids.dtype == torch.int64,
            f"Completions.ids is {self.ids.dtype}{list(self.ids.shape)}; expected int64[P, G, T]",
        )
        _check(
            self.mask.dtype == torch.bool and self.mask.shape == self.ids.shape,
            f"Completions.mask is {self.mask.dtype}{list(self.mask.shape)}; expected bool{list(self.ids.shape)}",
        )
        _check(
            [len(group) for group in self.texts] == [self.ids.shape[1]] * self.ids.shape[0],
            f"Completions.texts must be {self.ids.shape[0]} groups of {self.ids.shape[1]}",
        )
        _check(
            not bool((self.mask[..., 1:] & ~self.mask[..., :-1]).any()),
            "Completions.mask has a token after padding; completions must be padded on the right",
        )
        _check(
            self.logps is None or self.logps.shape == self.ids.shape,
            f"Completions.logps must have the shape of ids, {list(self.ids.shape)}",
        )

    @classmethod
    def padded(
        cls,
        rows: Sequence[Sequence[Sequence[int]]],
        texts: tuple[tuple[str, ...], ...],
        pad_id: int,
        device: torch.device,
    ) -> Completions:
        """From lists of tokens.

        Args:
            rows: P groups of the same number of lists.
            texts: P tuples of G texts.
            pad_id: fills masked places.
            device: of the tensors.
        """
        longest = max(len(row) for group in rows for row in group)
        ids = [[[*row, *[pad_id] * (longest - len(row))] for row in group] for group in rows]
        lengths = torch.tensor([[len(row) for row in group] for group in rows], device=device)
        mask = torch.arange(longest, device=device) < lengths.unsqueeze(-1)
        return cls(ids=torch.tensor(ids, device=device), mask=mask, texts=texts)

    @property
    def device(self) -> torch.device:
        """The device that all of its tensors are on."""
        return self.ids.device

    @property
    def group_size(self) -> int:
        """Number of completions per prompt, G."""
        return int(self.ids.shape[1])

    @property
    def lengths(self) -> Tensor:
        """i64[P, G], tokens of each completion."""
        return self.mask.sum(-1)

    def to(self, device: torch.device | str) -> Completions:
        """The same with all tensors on ``device``."""
        logps = None if self.logps is None else self.logps.to(device)
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device), logps=logps)

    def of_prompts(self, places: Tensor) -> Completions:
        """Those of the prompts at ``places`` i64[p]."""
        if len(places) == len(self.texts):
            return self
        return Completions(
            ids=self.ids[places],
            mask=self.mask[places],
            texts=tuple(self.texts[i] for i in places.tolist()),
            logps=None if self.logps is None else self.logps[places],
        )

    def split(self, size: int | None) -> tuple[Completions, ...]:
        """The same P prompts with at most ``size`` of their G completions each; None leaves the group whole."""
        size = size or max(1, self.group_size)
        logps = None if self.logps is None else self.logps.split(size, 1)
        return tuple(
            Completions(
                ids=ids,
                mask=mask,
                texts=tuple(group[i * size : (i + 1) * size] for group in self.texts),
                logps=None if logps is None else logps[i],
            )
            for i, (ids, mask) in enumerate(zip(self.ids.split(size, 1), self.mask.split(size, 1), strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class CandidateGroup:
    """What an oracle is shown: one prompt, its clip (or media), and all G candidate answers.

    Args:
        prompt: the question.
        clip: what is seen of it.
        answers: G texts; empty where a completion holds no answer.
        completions: the G texts that they were read from; by default the answers.
        reads: how; by default each answer is the whole of its completion.

    Raises:
        ValueError: fewer than 2 answers, or the parts disagree.
    """

    prompt: Prompt
    clip: Seen
    answers: tuple[str, ...]
    completions: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()

    def __post_init__(self) -> None:
        if not self.reads:
            object.__setattr__(self, "completions", self.answers)
            object.__setattr__(self, "reads", tuple(Read(answer, None, True) for answer in self.answers))
        told = tuple(read.answer or "" for read in self.reads)
        name = f"CandidateGroup of prompt {self.prompt.id!r}"
        _check(
            told == self.answers, f"{name} has answers that are not those of its reads; make it by CandidateGroup.of"
        )
        _check(len(self.completions) == len(told), f"{name} has {len(self.completions)} completions, {len(told)} reads")
        _check(len(self.answers) >= 2, f"CandidateGroup of prompt {self.prompt.id!r} has fewer than 2 answers")

    @classmethod
    def of(cls, prompt: Prompt, clip: Seen, completions: Sequence[str], answer_format: AnswerFormat) -> CandidateGroup:
        """The group of G completions, read by the policy's format."""
        reads = tuple(answer_format.read(text) for text in completions)
        answers = tuple(read.answer or "" for read in reads)
        return cls(prompt=prompt, clip=clip, answers=answers, completions=tuple(completions), reads=reads)

    def reordered(self, order: Sequence[int]) -> CandidateGroup:
        """The same candidates, at place i the one that was at ``order[i]``."""
        return replace(
            self,
            answers=tuple(self.answers[i] for i in order),
            completions=tuple(self.completions[i] for i in order),
            reads=tuple(self.reads[i] for i in order),
        )

    def seen(self, sees: Sees) -> CandidateGroup:
        """As a judge sees it that is shown ``answer``, ``thoughts`` or ``both`` (``orlaif.answer_format.shown``)."""
        if sees == "answer":
            return self
        return CandidateGroup(prompt=self.prompt, clip=self.clip, answers=shown(sees, self.completions, self.reads))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """An oracle's order of each group.

    Args:
        ranks: i64[P, G], 0 = best, equal answers share a rank, -1 = not ranked. Dense ([0, 1, 1, 2]) and competition
            ([0, 1, 1, 3]) numbering mean the same.
        scores: f32[P, G], larger is better, NaN = no score, for oracles that have scores; other real numbers, such as
            verdicts bool[P, G], become f32 here.
        failures: what kept groups from being ranked; those groups are -1 throughout.

    Raises:
        ValueError: a rank lies outside -1 .. G-1, a ranked group has no best answer, or scores are no real numbers.
    """

    ranks: Tensor
    scores: Tensor | None = None
    failures: tuple[OracleError, ...] = field(default=())

    def __post_init__(self) -> None:
        ranks = self.ranks
        _check(
            ranks.ndim == 2 and ranks.dtype == torch.int64,
            f"Ranking.ranks is {ranks.dtype}{list(ranks.shape)}; expected int64[P, G]",
        )
        _check(
            bool(((ranks >= -1) & (ranks < ranks.shape[1])).all()),
            f"Ranking.ranks must lie in -1 .. {ranks.shape[1] - 1}, found {ranks.tolist()}",
        )
        ranked = ranks >= 0
        best = (ranks == 0).any(-1)
        _check(
            bool((best | ~ranked.any(-1)).all()), f"Ranking.ranks needs a best answer (rank 0), found {ranks.tolist()}"
        )
        if self.scores is not None:
            object.__setattr__(self, "scores", _real(self.scores))
        _check(
            self.scores is None or self.scores.shape == ranks.shape,
            f"Ranking.scores must have the shape of ranks, {list(ranks.shape)}",
        )
        _check(
            self.scores is None or self.scores.device == ranks.device,
            f"Ranking.scores must be on the device of ranks, {ranks.device}",
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are: that of the oracle, mostly the CPU."""
        return self.ranks.device

    def to(self, device: torch.device | str) -> Ranking:
        """The same order with its tensors on ``device``."""
        return replace(
            self, ranks=self.ranks.to(device), scores=None if self.scores is None else self.scores.to(device)
        )


def _real(scores: object) -> Tensor:
    """Scores as f32; raises ValueError for what are no real numbers."""
    is_real = isinstance(scores, Tensor) and not scores.dtype.is_complex
    kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
    _check(is_real, f"Ranking.scores is {kind}; it must be a Tensor f32[P, G], or of other real numbers")
    assert isinstance(scores, Tensor)
    return scores.float()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a prompt was answered, by a group of answers.

    Args:
        id: of the prompt.
        pass_rate: share of the answers that are right.
        mean_score: of the oracle's scores.
        samples: answers that were scored.
    """

    id: str
    pass_rate: float
    mean_score: float
    samples: int


@runtime_checkable
class LearnsRates(Protocol):
    """What a stage needs of a DataModule whose order follows what is measured while it trains.

    Attributes:
        learns_rates: whether it does.
    """

    learns_rates: bool

    def note_rates(self, measured: Sequence[Measured]) -> None:
        """The groups of a batch, of all processes; every process is told the same."""


class PromptEncoder(Protocol):
    """From P prompts and their clips to the inputs of one model; what the DataModule needs of a model."""

    def __call__(self, prompts: Sequence[Prompt], clips: Sequence[Seen]) -> PromptBatch:
        """The batch of these P prompts, each encoded as if it were alone; picklable, for worker processes."""


@runtime_checkable
class KnowsSpecialTexts(Protocol):
    """An encoder that says which texts its model takes for more than text; a row that spells one is refused.

    Attributes:
        special_texts: such as the tokens that stand for a video, or end a turn.
    """

    special_texts: frozenset[str]


@runtime_checkable
class BringsEncoder(Protocol):
    """What the DataModule needs of a LightningModule."""

    def prompt_encoder(self, processor: str | None, system_prompt: str | None) -> PromptEncoder:
        """An encoder for the module's model, which shares no state with it: it is called on other threads.

        Args:
            processor: folder or hub id of the processor; None means the model's.
            system_prompt: goes before every question, if given.
        """


@runtime_checkable
class KnowsLongest(Protocol):
    """What a rollout by an engine needs of a DataModule: how long prompts may become."""

    def longest_prompt(self) -> tuple[int, str] | None:
        """Tokens of the longest training prompt that the settings allow, and which it is; None if nothing bounds it."""


@runtime_checkable
class LooksAhead(Protocol):
    """A LightningModule that begins to work on batches before their step.

    Attributes:
        batches_ahead: how many, 0 or more.
    """

    batches_ahead: int


@runtime_checkable
class DealsPrompts(Protocol):
    """A LightningModule some of whose processes are given the same prompts.

    Attributes:
        processes_per_prompt: how many next to each other in the run, 1 or more.
    """

    processes_per_prompt: int


class Prompts(Protocol):
    """Questions in their order, as the data set of a stage has them."""

    def __len__(self) -> int:
        """Number of questions, of which each has its place."""

    def __getitem__(self, index: int) -> Prompt:
        """The question at place ``index``, from 0."""


class Delivers(Protocol):
    """From prompts to a delivery: decodes, encodes, pads."""

    def __call__(self, prompts: Sequence[Prompt]) -> Delivery:
        """The delivery of P prompts; raises VideoError for bad media that may not be left out."""


@runtime_checkable
class AsksQuestions(Protocol):
    """What the evaluation and the board of completions need of a DataModule.

    Attributes:
        leave_out: by stage, the ids of questions that need not be loaded, such as those that a test has answered
            before; set before the stage's loader is made.
        collator: makes a delivery of any prompts, by the settings of the recipe; there once the module is set up.
    """

    leave_out: dict[str, set[str]]
    collator: Delivers

    def questions(self, stage: str) -> Prompts:
        """The data set of ``train``, ``val``, ``test`` or ``predict``; raises ValueError where there is none."""

    def answers_depend_on(self) -> dict[str, Any]:
        """The settings of the data that a model's answers depend on, by name, in values that JSON has."""
