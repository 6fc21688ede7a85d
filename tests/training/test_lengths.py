"""What the length of an answer does to its rank, by literal groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orlaif.training import rlaif as rlaif_file
from orlaif.training.experience import Experience, make_experience
from orlaif.training.lengths import Overlong, behind, check_lengths, cut_off, mean_places, penalised, without
from orlaif.types import Completions, Ranking
from tests.training.test_rlaif import ByText, Scripted, data, rlaif, trainer

END = 9


def ranking(*ranks: int, scores: list[float] | None = None) -> Ranking:
    return Ranking(ranks=torch.tensor([ranks]), scores=None if scores is None else torch.tensor([scores]))


def test_an_answer_that_does_not_end_was_cut_off() -> None:
    ids = torch.tensor([[[1, END, 0], [1, 2, 3], [0, 0, 0], [1, 2, END]]])
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 1, 1]]]).bool()
    completions = Completions(ids=ids, mask=mask, texts=(("a", "b", "", "d"),))
    assert cut_off(completions, (7, END)).tolist() == [[False, True, True, False]]


def test_places_of_ties_are_shared() -> None:
    assert mean_places(torch.tensor([[0, 1, 1, 2]])).tolist() == [[0, 1.5, 1.5, 3]]
    assert mean_places(torch.tensor([[1, 0, -1, 1]])).nan_to_num(-1).tolist() == [[1.5, 0, -1, 1.5]]


def test_the_overlong_penalty_on_scores_is_daposs_line() -> None:
    """Of 20 tokens the last 8: nothing up to 12, half at 16, all at 20 (equation 13)."""
    given = ranking(0, 0, 0, 0, scores=[1.0, 1.0, 1.0, 1.0])
    new = penalised(given, torch.tensor([[3, 12, 16, 20]]), Overlong(buffer=8), 20)
    assert new.scores is not None
    assert new.scores.tolist() == [[1.0, 1.0, 0.5, 0.0]]
    assert new.ranks.tolist() == [[0, 0, 1, 2]]


def test_the_overlong_penalty_on_ranks_is_a_soft_demotion() -> None:
    lengths = torch.tensor([[20, 5, 5, 5]])
    assert penalised(ranking(0, 1, 2, 3), lengths, Overlong(buffer=8), 20).ranks.tolist() == [[2, 0, 1, 2]]
    half = torch.tensor([[16, 5, 5, 5]])  # by 1.5 places: between the second and the third
    assert penalised(ranking(0, 1, 2, 3), half, Overlong(buffer=8), 20).ranks.tolist() == [[1, 0, 2, 3]]
    little = torch.tensor([[13, 5, 5, 5]])  # by 0.375 places: the order stays
    assert penalised(ranking(0, 1, 2, 3), little, Overlong(buffer=8), 20).ranks.tolist() == [[0, 1, 2, 3]]
    assert penalised(ranking(0, -1, 1), torch.tensor([[20, 20, 5]]), Overlong(buffer=8), 20).ranks.tolist() == [
        [1, -1, 0]
    ]


def test_masked_answers_are_left_out_of_the_order() -> None:
    new = without(ranking(0, 1, 2, -1, scores=[3.0, 2.0, 1.0, 0.5]), torch.tensor([[True, False, False, False]]))
    assert new.ranks.tolist() == [[-1, 0, 1, -1]]
    assert new.scores is not None
    assert new.scores.nan_to_num(-1).tolist() == [[-1.0, 2.0, 1.0, 0.5]]
    assert without(ranking(0, 1), torch.tensor([[True, True]])).ranks.tolist() == [[-1, -1]]


def test_answers_ranked_last_tie_there() -> None:
    new = behind(ranking(0, 1, 2, -1, 0, scores=[3.0, 2.0, 1.0, 0.5, 3.0]), torch.tensor([[1, 0, 0, 0, 1]]).bool())
    assert new.ranks.tolist() == [[2, 0, 1, -1, 2]]
    assert new.scores is not None
    assert new.scores.tolist() == [[0.5, 2.0, 1.0, 0.5, 0.5]]
    assert behind(ranking(0, 1), torch.tensor([[True, True]])).ranks.tolist() == [[0, 0]]  # nothing to learn


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"truncated is 'drop'; it must be 'keep', 'mask' or 'last'"):
        check_lengths("drop", None, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"overlong.buffer is 9, more than the 8 tokens of sampling.max_new_tokens"):
        check_lengths("keep", Overlong(buffer=9), 8)
    with pytest.raises(ValueError, match=r"overlong.buffer is 0; it must be 1 or more"):
        Overlong(buffer=0)
    with pytest.raises(ValueError, match=r"overlong.penalty is 0; it must be above 0"):
        Overlong(buffer=1, penalty=0)


def test_masked_answers_carry_no_weight(
    tiny_model: str, data_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the loss nor in what it is divided by; those of three tokens are the ones cut off."""
    made: list[Experience] = []
    monkeypatch.setattr(rlaif_file, "make_experience", lambda *a: made.append(make_experience(*a)) or made[-1])
    module = rlaif(tiny_model, oracle=ByText(), rollout=Scripted(group_size=4), truncated="mask")
    monkeypatch.setattr("orlaif.training.experience.cut_off", lambda completions, eos_ids: completions.lengths == 3)
    monkeypatch.setattr("orlaif.training.lengths.cut_off", lambda completions, eos_ids: completions.lengths == 3)
    trainer(tmp_path, max_steps=1).fit(module, data(data_root, 4))
    ((part,), (experience,)) = made[0].parts, made
    lengths = part.completions.lengths
    assert bool((lengths == 3).any())
    assert part.mask.sum(-1).tolist() == torch.where(lengths == 3, 0, lengths).tolist()
    assert float(experience.normalizer) == float(part.mask.sum())
    assert bool((part.advantages[lengths == 3] == 0).all())
