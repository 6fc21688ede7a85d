"""Oracle, mapping and group: what is refused before a model is loaded, and what a run says once."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path

import pytest

from orlaif.advantages import DCG, ODRPO, RLOO, Borda, MeanCentered, NDCGPenalty, ZScore
from orlaif.openai_client import ChatClient
from orlaif.oracles import (
    DecisionJudge,
    EnsembleOracle,
    FunctionOracle,
    HTTPJudge,
    ListwiseJudge,
    Oracle,
    PairwiseJudge,
    PreferenceRanker,
    RandomOracle,
    ReferenceAnswerOracle,
    Remote,
    Rubric,
    RubricJudge,
    ScoreOracle,
)
from orlaif.training.judging import check_judging
from tests.conftest import REPO
from tests.training.test_rlaif import ByText, data, rlaif, trainer

CLIENT = ChatClient("http://127.0.0.1:9/v1", "nobody")
HTTP = HTTPJudge(CLIENT)
#: Every kind that is here, and whether it scores.
SCORES: list[tuple[Oracle, bool]] = [
    (ReferenceAnswerOracle(), True),
    (ScoreOracle(lambda group: [0.0] * len(group.answers)), True),
    (RubricJudge(HTTP, [Rubric(name="seen", question="Seen?")]), True),
    (DecisionJudge(CLIENT, "{answer}", "True?"), True),
    (PreferenceRanker("nowhere"), True),
    (PairwiseJudge("nowhere"), True),
    (PairwiseJudge("nowhere", method="copeland"), False),
    (PairwiseJudge("nowhere", pairs="network"), False),
    (ListwiseJudge("nowhere"), False),
    (HTTP, False),
    (FunctionOracle(lambda group: list(range(len(group.answers)))), False),
    (EnsembleOracle([HTTP, ReferenceAnswerOracle()]), False),
    (RandomOracle(), False),
]

if importlib.util.find_spec("ray") is not None:  # it says what the one behind it says
    SCORES += [(Remote(ReferenceAnswerOracle()), True), (Remote(HTTP), False)]


@pytest.mark.parametrize(("oracle", "scores"), SCORES)
def test_a_mapping_of_scores_is_refused_for_an_oracle_that_only_ranks(oracle: Oracle, scores: bool) -> None:
    assert oracle.gives_scores is scores
    for mapping in (DCG(), Borda(), NDCGPenalty()):
        check_judging(oracle, mapping, 8)
    for scalar in (ZScore(), MeanCentered(), RLOO(), ODRPO()):
        if scores:
            check_judging(oracle, scalar, 8)
            continue
        name, kind = type(scalar).__name__, type(oracle).__name__
        with pytest.raises(
            ValueError, match=rf"^advantage is {name}, which needs an oracle with scores, and {kind}, as"
        ):
            check_judging(oracle, scalar, 8)


def test_the_docs_say_the_same_of_every_kind() -> None:
    """Last column of the table of oracles: yes, no, or the setting that decides."""
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| ([^|]+) \|$", (REPO / "docs/tutorials/own_oracle.md").read_text(), re.MULTILINE
    )
    told = dict(rows)
    for oracle, scores in SCORES:
        name = type(oracle).__name__
        if name == "PairwiseJudge":
            assert told[name].startswith("with `bradley_terry` over all pairs")
        elif name != "Remote":
            assert (name, told[name].startswith("yes")) == (name, scores)
            assert scores or told[name] == "no"


def test_an_oracle_that_does_not_say_is_asked_later() -> None:
    check_judging(ByText(), ZScore(), 1000)


def test_the_oracle_s_limit_is_that_of_the_group() -> None:
    reference, judge = ReferenceAnswerOracle(), RubricJudge(HTTP, [Rubric(name="seen", question="Seen?")])
    limited = EnsembleOracle([HTTP, reference])
    lenient = EnsembleOracle([HTTP, reference], min_opinions=1)
    kinds = (HTTP, ListwiseJudge("nowhere"), limited, lenient, reference, judge)
    assert [one.most_answers for one in kinds] == [26, 26, 26, None, None, None]
    check_judging(HTTP, DCG(), 26)
    with pytest.raises(ValueError, match=r"^rollout\.group_size is 27; it must be at most 26 for HTTPJudge$"):
        check_judging(HTTP, DCG(), 27)


def test_both_are_refused_where_the_module_is_made() -> None:
    """From a folder that holds no model, for none is loaded."""
    with pytest.raises(ValueError, match="advantage is ZScore"):
        rlaif("nowhere", oracle=HTTP, advantage=ZScore())
    rollout = rlaif("nowhere").rollout
    rollout.group_size = 40
    with pytest.raises(ValueError, match=r"rollout\.group_size is 40"):
        rlaif("nowhere", oracle=HTTP, rollout=rollout)


BY_TEXT = ScoreOracle(lambda group: [1 / (1 + sorted(set(group.answers)).index(one)) for one in group.answers])


def said(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if what in record.getMessage()]


def test_thresholds_off_the_scale_are_said_once(
    tiny_model: str, data_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores of 0 to 1, as the docs' levels of 1 to 5 are not; from the eighth ordered group on, and once."""
    with caplog.at_level(logging.WARNING, logger="orlaif"):
        module = rlaif(tiny_model, oracle=BY_TEXT, advantage=ODRPO([2, 3, 4, 5]))
        trainer(tmp_path, max_steps=3).fit(module, data(data_root, 8))
    (line,) = said(caplog, "so nothing is learnt")
    assert re.fullmatch(
        r"step \d: ODRPO has given no answer of the first \d+ groups that ScoreOracle ordered an advantage, so nothing "
        r"is learnt \(scores from 0\.\d+ to 1\); advantage\.thresholds \[2, 3, 4, 5\] must lie among the oracle's "
        r"scores",
        line,
    )


def test_a_mapping_that_teaches_is_not_spoken_of_and_the_literal_penalty_is(
    tiny_model: str, data_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="orlaif"):
        module = rlaif(tiny_model, oracle=ByText(), advantage=NDCGPenalty())
        trainer(tmp_path, max_steps=2).fit(module, data(data_root, 8))
    assert said(caplog, "so nothing is learnt") == []
    (line,) = said(caplog, "NDCGPenalty")
    assert (
        "quotient 'literal', which looks at whether policy and oracle agree and can push the best answer down" in line
    )
    assert NDCGPenalty(quotient="reversed").caution is DCG().caution is None
