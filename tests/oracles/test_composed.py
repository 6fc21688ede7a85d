"""Scores, functions and ensembles as oracles; partial failures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    PreTrainedTokenizerBase,
    StableLmConfig,
    StableLmForCausalLM,
    StableLmForSequenceClassification,
)

from orlaif.openai_client import ChatClient
from orlaif.oracles import (
    EnsembleOracle,
    FunctionOracle,
    HTTPJudge,
    Oracle,
    OracleFailure,
    PairwiseJudge,
    PreferenceRanker,
    ReferenceAnswerOracle,
    ScoreOracle,
    TextRewardModel,
    rank_groups,
)
from orlaif.tiny import tiny_tokenizer
from orlaif.types import CandidateGroup, OracleError, Ranking, VideoPrompt
from tests.oracles.test_oracles import CLIP


def group(*answers: str, id: str = "p", **prompt: object) -> CandidateGroup:
    made = VideoPrompt(id=id, video="none", question="which?", **prompt)  # type: ignore[arg-type]
    return CandidateGroup(prompt=made, clip=CLIP, answers=answers)


# ------------------------------------------------------------------------------------------------ reference answers


def test_criteria_decide_one_after_the_other() -> None:
    oracle = ReferenceAnswerOracle(["exact", "f1", "shortest"])
    answers = ("red ball", "a big red ball here", "red ball there", "ball", "blue", "green cube")
    ranking = oracle.rank([group(*answers, answer="red ball")])
    # exact; then F1 2/3 (4 words), 4/5, 2/3 (1 word), 0 (1 word), 0 (2 words)
    assert ranking.ranks.tolist() == [[0, 3, 1, 2, 4, 5]]
    assert ranking.scores is not None
    assert ranking.scores[0].tolist() == pytest.approx([1.0, 1 / 3, 0.4, 1 / 3, 0.0, 0.0])


def test_the_default_is_right_then_right_kind() -> None:
    ranking = ReferenceAnswerOracle().rank(
        [group("red", "blue", "seven", "Red.", answer="red", options=("red", "blue"))]
    )
    assert ranking.ranks.tolist() == [[0, 1, 2, 0]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[1.0, 0.5, 0.0, 1.0]]


def test_choice_and_numbers() -> None:
    options = ("A. a cat", "B. a dog")
    ranking = ReferenceAnswerOracle(["choice", "names_an_option"]).rank(
        [group("B", "a dog", "A", "no idea", answer="B", options=options)]
    )
    assert ranking.ranks.tolist() == [[0, 0, 1, 2]]
    assert ReferenceAnswerOracle(["numeric"]).rank([group("three", "4", answer="3")]).ranks.tolist() == [[0, 1]]


def test_what_the_criteria_need_is_asked_for() -> None:
    with pytest.raises(OracleError, match="no options"):
        ReferenceAnswerOracle(["choice"]).rank([group("a", "b", answer="a")])
    with pytest.raises(ValueError, match=r"oracle.criteria is \['bleu'\]; it must be one or more of exact"):
        ReferenceAnswerOracle(["bleu"])


# ---------------------------------------------------------------------------------------------------------- scores


def by_length(candidates: CandidateGroup) -> list[float]:
    return [float(len(answer)) for answer in candidates.answers]


def test_scores_become_ranks_with_ties_and_gaps() -> None:
    ranking = ScoreOracle(by_length).rank([group("aa", "a", "aa"), group("", "b", "ccc")])
    assert ranking.ranks.tolist() == [[0, 1, 0], [2, 1, 0]]
    assert ScoreOracle(lambda g: [1.0, float("nan")]).rank([group("a", "b")]).ranks.tolist() == [[0, -1]]


def test_a_margin_ties_what_is_close_to_the_best_of_its_rank() -> None:
    ranking = ScoreOracle(lambda g: [1.0, 0.95, 0.88, 0.5], margin=0.1).rank([group("a", "b", "c", "d")])
    assert ranking.ranks.tolist() == [[0, 0, 1, 2]]  # 0.88 is close to 0.95, but not to 1.0
    assert ranking.scores is not None
    assert ranking.scores[0].tolist() == pytest.approx([1.0, 0.95, 0.88, 0.5])


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("inf")], [1.0, 2.0, 3.0], None, ["x", "y"]])
def test_a_score_that_is_none_is_an_error(scores: Any) -> None:
    with pytest.raises(OracleError, match="expected 2 finite numbers"):
        ScoreOracle(lambda g: scores).rank([group("a", "b")])


# -------------------------------------------------------------------------------------------------------- functions


def test_a_function_of_ones_own() -> None:
    oracle = FunctionOracle(lambda g: [None if answer == "?" else len(answer) - 1 for answer in g.answers])
    assert oracle.rank([group("a", "bb", "?"), group("bb", "a", "a")]).ranks.tolist() == [[0, 1, -1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("ranks", "cause"),
    [
        ([0], "whole numbers"),
        ([0.5, 0], "whole numbers"),
        ([1, 1], "best answer"),
        ([0, 7], "must lie in"),
        (["a", 0], ""),
        (None, "not iterable"),
    ],
)
def test_a_function_that_does_not_rank(ranks: Any, cause: str) -> None:
    def my_rank(candidates: CandidateGroup) -> Any:
        return ranks

    with pytest.raises(OracleError, match=rf"oracle my_rank gave no ranking for prompt 'p': it gave .*{cause}"):
        FunctionOracle(my_rank).rank([group("a", "b")])


# -------------------------------------------------------------------------------------------------------- ensembles


class Fixed(Oracle):
    """The same ranks for every group; fails for prompts named."""

    def __init__(self, ranks: Sequence[int], fails: Sequence[str] = (), raises: bool = False) -> None:
        self.ranks, self.fails, self.raises, self.asked = list(ranks), fails, raises, 0

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        self.asked += len(groups)
        rows, failures = [], []
        for one in groups:
            if one.prompt.id in self.fails:
                failures.append(OracleError("Fixed", one.prompt.id, "no idea"))
            rows.append([-1] * len(self.ranks) if one.prompt.id in self.fails else self.ranks)
        if failures and self.raises:
            raise failures[0]
        return Ranking(ranks=torch.tensor(rows), failures=tuple(failures))


def test_an_ensemble_by_hand() -> None:
    first, second, third = Fixed([0, 1, 2]), Fixed([0, 2, 1]), Fixed([2, 0, 1])
    groups = [group("a", "b", "c")]
    assert EnsembleOracle([first, second]).rank(groups).ranks.tolist() == [[0, 1, 1]]
    assert EnsembleOracle([first, third], weights=[1, 3]).rank(groups).ranks.tolist() == [[2, 0, 1]]
    assert EnsembleOracle([first, second, third], method="copeland").rank(groups).ranks.tolist() == [[0, 1, 2]]


def test_an_ensemble_needs_its_opinions() -> None:
    groups = [group("a", "b", id="x"), group("a", "b", id="y")]
    members = [Fixed([0, 1]), Fixed([0, 1], fails=["y"], raises=True)]
    ranking = EnsembleOracle(members).rank(groups)
    assert ranking.ranks.tolist() == [[0, 1], [-1, -1]]
    assert str(ranking.failures[0]) == (
        "oracle EnsembleOracle gave no ranking for prompt 'y': 1 of 2 oracles ranked it, 2 are needed; "
        "oracle Fixed gave no ranking for prompt 'y': no idea"
    )
    assert EnsembleOracle(members, min_opinions=1).rank(groups).ranks.tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"oracles": [Fixed([0, 1])]}, "needs 2 or more"),
        ({"weights": [1.0]}, "must be 2 positive numbers"),
        ({"weights": [1.0, 0.0]}, "must be 2 positive numbers"),
        ({"method": "median"}, "must be 'borda' or 'copeland'"),
        ({"min_opinions": 3}, r"must lie in 1 .. 2"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnsembleOracle(**{"oracles": [Fixed([0, 1]), Fixed([0, 1])], **settings})  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- partial failure


def test_an_oracle_says_which_models_it_holds() -> None:
    """The plan counts their weights; the policy's base and a server are no further models."""
    client = ChatClient("http://localhost/v1", "m")
    held = EnsembleOracle(
        [
            PreferenceRanker("folder"),
            PairwiseJudge("model", device="cuda:1"),
            PairwiseJudge(None),
            HTTPJudge(client),
            ScoreOracle(TextRewardModel("model", device="cpu")),
            ScoreOracle(lambda group: [0.0]),
        ]
    ).held_models()
    assert [model.oracle for model in held] == ["PreferenceRanker", "PairwiseJudge", "TextRewardModel"]
    assert [model.device for model in held] == [None, "cuda:1", "cpu"]


def test_a_partial_failure_asks_again_only_for_what_failed() -> None:
    groups = [group("a", "b", id="x"), group("a", "b", id="y"), group("a", "b", id="z")]
    oracle = Fixed([0, 1], fails=["y"])
    ranking = rank_groups(oracle, groups, OracleFailure(action="drop_group", retries=2))
    assert oracle.asked == 3 + 2
    assert ranking.ranks.tolist() == [[0, 1], [-1, -1], [0, 1]]
    assert [error.prompt_id for error in ranking.failures] == ["y"]
    with pytest.raises(OracleError, match="'y'"):
        rank_groups(oracle, groups, OracleFailure(action="retry", retries=1))
    with pytest.raises(OracleError, match="'y'"):
        rank_groups(oracle, groups, OracleFailure(action="error"))


def test_a_retry_that_helps_leaves_no_failure() -> None:
    class Moody(Fixed):
        def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
            self.fails = ["y"] if self.asked == 0 else []
            return super().rank(groups)

    groups = [group("a", "b", id="x"), group("a", "b", id="y")]
    ranking = rank_groups(Moody([0, 1]), groups, OracleFailure(action="retry", retries=1))
    assert ranking.ranks.tolist() == [[0, 1], [0, 1]]
    assert ranking.failures == ()


def reward_config(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> StableLmConfig:
    """A tiny language model of the tokenizer's vocabulary; ``settings`` are further ones of StableLmConfig."""
    return StableLmConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )


def test_a_reward_model_of_hugging_face(tmp_path: Path) -> None:
    """Rewards of a padded batch are those of each answer alone."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(["which", "red", "blue", "ball"])
    config = reward_config(tokenizer, num_hidden_layers=2, num_labels=1)
    model = StableLmForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answers = ("red", "blue ball", "red ball red ball", "red")
    ranking = ScoreOracle(TextRewardModel(str(tmp_path), dtype="float32", device="cpu")).rank([group(*answers)])
    assert ranking.scores is not None
    for answer, score in zip(answers, ranking.scores[0].tolist(), strict=True):
        messages = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        with torch.no_grad():
            alone = model.eval()(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        assert score == pytest.approx(float(alone[0, 0]), abs=1e-5)
    assert ranking.scores[0, 0] == ranking.scores[0, 3]
    assert ranking.scores.unique().numel() == 3


def test_a_reward_model_may_be_an_adapter(tmp_path: Path) -> None:
    """On a language model, with the head beside it, as TRL's reward trainer saves it."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(["which", "red", "blue", "ball"])
    config = reward_config(tokenizer, num_hidden_layers=1)
    StableLmForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = StableLmForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    oracle = ScoreOracle(TextRewardModel(str(tmp_path / "adapter"), dtype="float32", device="cpu"))
    ranking = oracle.rank([group("red", "blue ball")])
    assert ranking.scores is not None
    for answer, score in zip(("red", "blue ball"), ranking.scores[0].tolist(), strict=True):
        messages = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        with torch.no_grad():
            alone = model.eval()(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        assert score == pytest.approx(float(alone[0, 0]), abs=1e-5)
