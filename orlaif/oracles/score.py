"""Scalar rewards as an oracle: a function or a reward model whose scores are turned into ranks.

With ``advantage: {class_path: orlaif.advantages.ZScore}`` the same scores are used as they are: plain scalar GRPO, the
baseline that ranks are compared with, one line of a recipe away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from orlaif.answer_format import Sees, checked_sees
from orlaif.evaluation.quoting import special_tokens, without_tokens
from orlaif.oracles.base import Oracle, dense_ranks
from orlaif.oracles.held import HeldModel
from orlaif.policy.hub import find_source
from orlaif.policy.merging import fold
from orlaif.stages import told
from orlaif.types import CandidateGroup, OracleError, Ranking

Score = Callable[[CandidateGroup], Sequence[float]]


class ScoreOracle(Oracle):
    """Ranks by a score, larger is better; NaN leaves an answer out.

    Args:
        score: from a group to G numbers; in a recipe the dotted name of a function, or a ``class_path`` of something
            callable, such as :class:`TextRewardModel`.
        margin: scores that differ by no more than this from the best of their rank tie with it.
        sees: what of a completion the score is given as ``answers``: ``answer``, ``thoughts``, or ``both``, the text as
            it was written.

    Raises:
        ValueError: a negative margin.
    """

    gives_scores = True

    def __init__(self, score: Score, margin: float = 0.0, sees: Sees = "answer") -> None:
        if margin < 0:
            raise ValueError(f"oracle.margin is {margin}; it must be 0 or more")
        self.score = score
        self.margin = margin
        self.sees = checked_sees(sees)

    def held_models(self) -> tuple[HeldModel, ...]:
        """Those of a score that holds one."""
        return tuple(getattr(self.score, "held_models", tuple)())

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group by their scores.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G] and the scores f32[P, G].

        Raises:
            OracleError: the score is not one finite number (or NaN) per answer.
        """
        name = type(self).__name__
        rows = []
        for group in told(groups, "judge", "groups"):
            given = self.score(group.seen(self.sees))
            try:
                scores = torch.as_tensor(given, dtype=torch.float32)
            except (TypeError, ValueError, RuntimeError) as error:
                cause = f"the score gave {given!r}; expected {len(group.answers)} finite numbers"
                raise OracleError(name, group.prompt.id, cause) from error
            if scores.shape != (len(group.answers),) or bool(scores.isinf().any()):
                cause = f"the score gave {scores.tolist()}; expected {len(group.answers)} finite numbers"
                raise OracleError(name, group.prompt.id, cause)
            rows.append(scores)
        stacked = torch.stack(rows)
        return Ranking(ranks=dense_ranks(_levelled(stacked, self.margin)), scores=stacked)


def _levelled(scores: torch.Tensor, margin: float) -> torch.Tensor:
    """Scores within ``margin`` below the best of a tie, made equal to it."""
    if not margin:
        return scores
    levelled = scores.clone()
    for row in levelled:
        best = float("nan")
        for i in row.argsort(descending=True).tolist():
            if not best - float(row[i]) <= margin:
                best = float(row[i])
            row[i] = best
    return levelled


class TextRewardModel:
    """A Hugging Face reward model over question and answer, for :class:`ScoreOracle`; it does not see the video.

    Args:
        path: folder or hub id of an ``AutoModelForSequenceClassification`` with one output, or a PEFT adapter.
        dtype: of its weights.
        device: where it runs; by default CUDA where there is one.

    Raises:
        ValueError: on first use, a model with more than one output, or a tokenizer without a chat template.
    """

    def __init__(self, path: str, dtype: str = "bfloat16", device: str | None = None) -> None:
        self.path, self.dtype = path, dtype
        self._named_device = device
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            source = find_source(self.path)
            place, revision = source.tokenizer
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
            head = {} if source.adapter is None else {"num_labels": 1}  # an adapter brings its own
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                source.model, revision=source.revision, dtype=getattr(torch, self.dtype), **head
            )
            if source.adapter is not None:
                model = fold(model, source.adapter)
            if model.config.num_labels != 1:
                raise ValueError(f"oracle.score: {self.path} has {model.config.num_labels} outputs; a reward has one")
            if tokenizer.chat_template is None:
                raise ValueError(f"oracle.score: the tokenizer of {self.path} has no chat template")
            self._loaded = tokenizer, model.to(self.device).eval()
        return self._loaded

    def held_models(self) -> tuple[HeldModel, ...]:
        """The reward model."""
        held = HeldModel(oracle=type(self).__name__, path=self.path, device=self._named_device, build=self._build)
        return (held,)

    def _build(self) -> Any:
        """Without weights, with one output whatever the config says."""
        from transformers import AutoConfig, AutoModelForSequenceClassification

        source = find_source(self.path)
        config = AutoConfig.from_pretrained(source.model, revision=source.revision, num_labels=1)
        return AutoModelForSequenceClassification.from_config(config, dtype=getattr(torch, self.dtype))

    @torch.no_grad()
    def __call__(self, group: CandidateGroup) -> list[float]:
        """One reward per answer of the group, from question and answer as a chat; the video is not seen."""
        tokenizer, model = self._load()
        markup = special_tokens(tokenizer)  # an answer that closes its turn must not open another
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": group.prompt.question}, {"role": "assistant", "content": answer}],
                tokenize=False,
            )
            for answer in (without_tokens(text, markup) for text in group.answers)
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self.device)
        return model(**inputs).logits[:, 0].float().tolist()
