"""Evaluation while training (``val/...``), ``orlaif test`` and ``orlaif predict``: what a stage does with the batches.

A module *has* a :class:`Loop` for each of the three; another kind of evaluation is another loop, not another module.
The module itself only answers questions, and calls its loops where Lightning calls it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from lightning import LightningModule

from orlaif.policy import Policy
from orlaif.policy.context import context_limit
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.hub import load_processor
from orlaif.rollout import SamplingParams, generate
from orlaif.types import Delivery, PromptBatch

Stage = Literal["validate", "test", "predict"]


class Loop(ABC):
    """What a stage does with its batches: :meth:`setup` once, then :meth:`start`, :meth:`step` ..., :meth:`end`.

    Every method is given the module, whose ``trainer``, ``policy``, ``answer`` and ``log`` it uses. Sharded weights are
    whole from :meth:`start` to the last :meth:`step`; all processes call all methods, :meth:`step` in unequal numbers.
    """

    def setup(self, module: Evaluated) -> None:  # noqa: B027 (a loop may have nothing to do here)
        """Before the stage's loaders are made."""

    def start(self, module: Evaluated) -> None:  # noqa: B027
        """Before the first batch of the stage: clear counters and files."""

    @abstractmethod
    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> Any:
        """One batch, which may be empty; what ``predict`` returns for it."""

    def end(self, module: Evaluated) -> None:  # noqa: B027
        """After the last batch: log, write."""


class Evaluated(LightningModule):
    """A module whose policy answers questions.

    Args:
        policy: the model.
        eval_max_new_tokens: longest greedy answer in validation, test and prediction.
        loops: what is done in each stage.
    """

    def __init__(self, policy: Policy, eval_max_new_tokens: int, loops: Mapping[Stage, Loop]) -> None:
        super().__init__()
        self.policy = policy
        self.greedy = SamplingParams(max_new_tokens=eval_max_new_tokens, temperature=0.0)
        self.loops: dict[Stage, Loop] = dict(loops)
        self._whole = ExitStack()

    @property
    def run_dir(self) -> str:
        """Folder that everything of this run is written below."""
        return self.trainer.default_root_dir

    def prompt_encoder(self, processor: str | None, system_prompt: str | None) -> ProcessorEncoder:
        """The encoder that the DataModule calls on its threads: :class:`~orlaif.types.BringsEncoder`."""
        limit = context_limit(self.policy.config)
        longest = None if limit is None else limit - self.longest_answer
        # A tokenizer keeps the last call's padding in itself; the step's calls must not meet those of a thread.
        own = copy.deepcopy(self.policy.processor) if processor is None else load_processor(processor)
        encoder = ProcessorEncoder(own, system_prompt, self.policy.family, longest, self.policy.chat)
        template = self.policy.chat.prompt_template
        if spelled := [text for text in sorted(encoder.special_texts) if text in template]:
            raise ValueError(f"policy.chat.prompt_template spells {spelled[0]!r}, which is no text to this model")
        return encoder

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer that this stage makes."""
        return self.greedy.max_new_tokens

    def answer(self, batch: PromptBatch) -> list[str]:
        """One greedy answer per prompt; the list is empty for an empty batch."""
        return [group[0] for group in generate(self.policy, batch, 1, self.greedy).texts] if len(batch) else []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Sharded weights are whole inside, since processes may have unequal numbers of questions."""
        with self.policy.gathered():
            yield

    def _start(self, stage: Stage) -> None:
        self._whole.enter_context(self.gathered())
        self.loops[stage].start(self)

    def _end(self, stage: Stage) -> None:
        self._whole.close()
        self.loops[stage].end(self)

    # ------------------------------------------------------------------------------------------- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Before the loaders are made; the loop of the stage may leave questions out of them."""
        for name, loop in self.loops.items():
            if name == stage:
                loop.setup(self)

    def on_validation_epoch_start(self) -> None:
        """Gather sharded weights and start the loop of ``validate``."""
        self._start("validate")

    def validation_step(self, delivery: Delivery, batch_idx: int) -> None:
        """One batch, by the loop of ``validate``."""
        self.loops["validate"].step(self, delivery, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Let go of gathered weights and end the loop of ``validate``."""
        self._end("validate")

    def on_test_epoch_start(self) -> None:
        """Gather sharded weights and start the loop of ``test``."""
        self._start("test")

    def test_step(self, delivery: Delivery, batch_idx: int) -> None:
        """One batch, by the loop of ``test``."""
        self.loops["test"].step(self, delivery, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Let go of gathered weights and end the loop of ``test``."""
        self._end("test")

    def on_predict_epoch_start(self) -> None:
        """Gather sharded weights and start the loop of ``predict``."""
        self._start("predict")

    def predict_step(self, delivery: Delivery, batch_idx: int) -> Any:
        """One batch, by the loop of ``predict``; what it returns is Lightning's prediction."""
        return self.loops["predict"].step(self, delivery, batch_idx)

    def on_predict_epoch_end(self) -> None:
        """Let go of gathered weights and end the loop of ``predict``."""
        self._end("predict")
