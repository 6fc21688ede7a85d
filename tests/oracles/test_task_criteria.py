"""The oracle of the reference answer on tasks whose answers are more or less right."""

from __future__ import annotations

import pytest
import torch

from orlaif.oracles import ReferenceAnswerOracle
from orlaif.types import CandidateGroup, OracleError, VideoClip, VideoPrompt

PTS = torch.tensor([0.0, 1.0], dtype=torch.float64)
CLIP = VideoClip(frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), pts_s=PTS, path="a.mp4", duration_s=2.0)


def group(reference: str, answers: tuple[str, ...], options: tuple[str, ...] | None = None) -> CandidateGroup:
    prompt = VideoPrompt(id="p", video="a.mp4", question="when?", answer=reference, options=options)
    return CandidateGroup(prompt=prompt, clip=CLIP, answers=answers)


@pytest.mark.parametrize(
    ("criteria", "reference", "answers", "ranks"),
    [
        (["tiou", "names_a_span"], "10 - 20", ("10 to 20 s", "15 - 25", "50 - 60", "no idea"), [0, 1, 2, 3]),
        (["tiou"], "10 - 20", ("50 - 60", "no idea", "12 - 20"), [1, 1, 0]),
        (["iou", "names_a_box"], "[0, 0, 4, 4]", ("left", "[0, 0, 4, 3]", "[8, 8, 9, 9]"), [2, 0, 1]),
        (["closeness", "names_a_number"], "1.5 min", ("100 s", "90 s", "5 kg", "long", "10 min"), [1, 0, 3, 4, 2]),
        (["order", "names_an_order"], "B, A, C", ("C, A, B", "A, B, C", "B, A, C", "B"), [2, 1, 0, 3]),
        (["chrf"], "a red ball rolls", ("a red ball rolls", "a ball rolls", "nothing"), [0, 1, 2]),
    ],
)
def test_orders_by_the_task(criteria: list[str], reference: str, answers: tuple[str, ...], ranks: list[int]) -> None:
    assert ReferenceAnswerOracle(criteria).rank([group(reference, answers)]).ranks.tolist() == [ranks]


def test_scores_are_the_measures() -> None:
    ranking = ReferenceAnswerOracle(["tiou"]).rank([group("10 - 20", ("10 - 20", "15 - 25", "never"))])
    assert ranking.scores is not None
    torch.testing.assert_close(ranking.scores, torch.tensor([[1.0, 1 / 3, 0.0]]))


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ("tiou", "it must name a time span"),
        ("iou", "it must name a box"),
        ("closeness", "it must state one number"),
        ("order", "it must be an order of events"),
    ],
)
def test_a_reference_of_another_task_is_said(criterion: str, said: str) -> None:
    with pytest.raises(OracleError, match=said):
        ReferenceAnswerOracle([criterion]).rank([group("a dog", ("a", "b"))])
