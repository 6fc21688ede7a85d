"""What a data set of prompts is, wherever they come from: the seam for data of a user's own."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch.utils.data import Dataset, Subset

from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.share import Share, fingerprint
from orlaif.data.spelled import spelled_token
from orlaif.types import Prompt


class PromptDataset(Dataset[Prompt], ABC):
    """A dataset that a recipe names by ``class_path``."""

    def prepare(self) -> None:
        """Write what must be on disk before :meth:`load`; called once, on one process."""

    @abstractmethod
    def load(self) -> None:
        """Read and check all rows; called on every process, after :meth:`prepare`. May be called again."""

    def problems(self) -> list[str]:
        """What is wrong with the rows, a line each; empty where :meth:`load` succeeds."""
        try:
            self.load()
            self.check_texts()
        except ValueError as error:
            return [str(error)]
        return []

    def readable(self) -> list[Prompt]:
        """After :meth:`problems`, the prompts that are not broken."""
        return [self[i] for i in range(len(self))]

    #: Texts that the model at hand takes for more than text (its special tokens), which no row may spell.
    forbidden: frozenset[str] = frozenset()

    def forbid(self, texts: frozenset[str]) -> None:
        """From the next :meth:`load` on, a row that spells one of these is a broken one."""
        self.forbidden = texts

    def where(self, prompt: Prompt) -> str:
        """Where a prompt of this data set stands, for errors."""
        return f"prompt {prompt.id!r}"

    def checked(self, prompt: Prompt) -> Prompt | ValueError:
        """The prompt, or what is wrong with its texts."""
        problem = spelled_token(prompt, self.forbidden)
        return prompt if problem is None else ValueError(f"{self.where(prompt)}: {problem}")

    def check_texts(self) -> None:
        """Raise ValueError for the first row whose texts are forbidden; for data sets that read no file."""
        for index in range(len(self)) if self.forbidden else ():
            if isinstance(row := self.checked(self[index]), ValueError):
                raise row

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Prompt: ...

    @property
    def num_rows(self) -> int | None:
        """How many there are; None for a stream, which does not know."""
        return len(self)

    def indexed(self, what: str) -> PromptDataset:
        """This, for a use that needs rows by number; a stream raises a ValueError that names ``what``."""
        return self

    def fingerprint(self) -> str:
        """How many rows, and a hash of what they say; the same wherever the files lie."""
        return fingerprint(self[i] for i in range(len(self)))

    def epoch(
        self, number: int, seed: int, share: Share, fixed: bool, curriculum: AnswerLengthCurriculum | None
    ) -> Dataset[Prompt]:
        """The rows of one process in one epoch, in order.

        Args:
            number: of the epoch.
            seed: of the order.
            share: of this process.
            fixed: the file's order in every epoch.
            curriculum: orders the rows, if given; else all are shuffled.
        """
        if fixed:
            order = list(range(len(self)))
        elif curriculum is not None:
            order = curriculum.order(self, seed + number)
        else:  # as torch's DistributedSampler does
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed + number)).tolist()
        return Subset(self, share.of(order))


class HeldPrompts(PromptDataset):
    """A data set whose :meth:`load` leaves all of its prompts in ``_prompts``."""

    _prompts: list[Prompt] | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts, loaded on first use."""
        if self._prompts is None:
            self.load()
        assert self._prompts is not None
        return self._prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]
