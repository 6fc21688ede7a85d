"""From a batch to an Experience, what it carries between hooks, and on which device ranks become advantages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.advantages import DCG, Borda, NDCGPenalty, ZScore
from orlaif.losses import GRPORankLoss
from orlaif.oracles import Oracle
from orlaif.policy import Policy
from orlaif.training import experience as experience_file
from orlaif.training import rlaif as rlaif_file
from orlaif.training.experience import Experience, make_experience, ranks_for_loss
from orlaif.training.notes import StepNotes
from orlaif.training.ranker import PreferenceRankerTraining
from orlaif.training.step_state import Given, StepState
from orlaif.types import Completions, PreferencePrompt, PromptBatch, Ranking
from tests.training.test_rlaif import ByText, Recorder, Scripted, data, rlaif, trainer


def test_an_experience_is_p_g_t_throughout(
    tiny_model: str, data_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 4 in parts of 3 and 1, with a reference and the log-probs of the policy that sampled."""
    made: list[Experience] = []
    monkeypatch.setattr(rlaif_file, "make_experience", lambda *a: made.append(make_experience(*a)) or made[-1])
    module = rlaif(tiny_model, oracle=ByText(), rollout=Scripted(group_size=4), microbatch=3, num_updates=2)
    trainer(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(module, data(data_root, 4))
    assert len(made) == 4
    for experience in made:
        assert [part.completions.group_size for part in experience.parts] == [3, 1]
        for part, g in zip(experience.parts, (3, 1), strict=True):
            t = part.completions.ids.shape[-1]
            assert part.reference is not None
            assert part.old is not None
            assert [tuple(x.shape) for x in (part.mask, part.reference, part.old)] == [(4, g, t)] * 3
            assert tuple(part.advantages.shape) == (4, g)
        tokens = sum(int(part.mask.sum()) for part in experience.parts)
        assert float(experience.normalizer) == tokens  # dapo: all tokens alike
    assert module._experiences == []


def test_an_advantage_is_given_ranks_where_the_completions_are(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[Any] = []
    to = Ranking.to
    monkeypatch.setattr(Ranking, "to", lambda self, device: went.append(device) or to(self, device))
    ids = torch.zeros(1, 2, 1, dtype=torch.int64)
    completions = Completions(ids=ids, mask=ids == 0, texts=(("a", "b"),), logps=-torch.ones(1, 2, 1))
    rlaif(tiny_model).advantages(Ranking(ranks=torch.tensor([[0, 1]])), completions)
    assert went == [completions.device]


@pytest.mark.gpu
def test_the_policy_agreement_penalty_on_a_gpu(tiny_model: str) -> None:
    """Ranks come from the CPU, log-probs from the GPU; the same advantages as on the CPU."""
    ids = torch.zeros(1, 3, 1, dtype=torch.int64)
    logps = torch.tensor([[[-1.0], [-3.0], [-2.0]]])
    ranking = Ranking(ranks=torch.tensor([[1, 0, 2]]), scores=torch.zeros(1, 3))
    module = rlaif(tiny_model, advantage=NDCGPenalty())
    values = []
    for device in ("cpu", "cuda"):
        there = ids.to(device)
        completions = Completions(ids=there, mask=there == 0, texts=(("a", "b", "c"),), logps=logps.to(device))
        values.append(module.advantages(ranking, completions))
        assert values[-1].device.type == device
    torch.testing.assert_close(values[0], values[1].cpu())


def test_a_ranking_is_on_one_device() -> None:
    ranking = Ranking(ranks=torch.tensor([[0, 1]]), scores=torch.tensor([[1.0, 0.0]]))
    assert ranking.device == torch.device("cpu")
    moved = ranking.to("cpu")
    assert moved.scores is not None
    assert (moved.ranks.tolist(), moved.scores.tolist()) == ([[0, 1]], [[1.0, 0.0]])


def test_a_step_gives_its_normalizer_behind_its_last_batch() -> None:
    """Two batches of 3 and 4 tokens, then a step of one batch: 7, then 5; a postponed batch counts nothing."""
    state = StepState()
    state.hand_over(torch.tensor(3.0), is_last=False)
    assert state.take() is None
    state.hand_over(torch.tensor(4.0), is_last=True)
    taken = state.take()
    assert taken is not None
    assert float(taken) == 7.0
    state.postpone()
    assert state.take() is None
    state.hand_over(torch.tensor(5.0), is_last=True)
    taken = state.take()
    assert taken is not None
    assert float(taken) == 5.0


def test_a_stand_in_carries_no_weight(batch: PromptBatch) -> None:
    weight = torch.ones((), requires_grad=True)
    total, count = Given(batch=batch, generators=[], counts=False).weigh(weight * 3, torch.tensor(2))
    total.backward()
    assert (float(total), int(count)) == (0.0, 0)
    assert weight.grad is not None
    assert float(weight.grad) == 0.0
    total, count = Given(batch=batch, generators=[], counts=True).weigh(weight * 3, torch.tensor(2))
    assert (float(total), int(count)) == (3.0, 2)


def test_a_ranker_stands_in_with_compared_answers(tiny_model: str) -> None:
    module = PreferenceRankerTraining(Policy(tiny_model, dtype="float32"))
    module.configure_model()
    (prompt,) = module.stand_in().prompts
    assert isinstance(prompt, PreferencePrompt)
    scores, ranks = module.scored(module.stand_in())
    assert (tuple(scores.shape), ranks.tolist()) == ((1, 2), [[0, 1]])


def test_notes_are_means_by_weight_and_are_taken_once() -> None:
    notes = StepNotes()
    notes.note("a", 2.0, weight=3)
    notes.note("nothing", 1.0, weight=0)
    notes.count("train/num_tokens", 5)
    assert notes.take() == {"a": 2.0, "train/num_tokens": 5.0, "data/bad_videos": 0.0}
    notes.count("train/num_tokens", 2)
    assert notes.take() == {"train/num_tokens": 7.0, "data/bad_videos": 0.0}


def test_ranks_go_to_the_loss_where_they_say_all(tiny_model: str) -> None:
    """Not where the kernels would leave out an answer that counts here, nor for a mapping that they do not have."""

    class OtherDCG(DCG):
        pass

    module = rlaif(tiny_model)
    whole, unranked = [0, 2, 1, 1], [-1, -1, -1, -1]
    for rows, handed in (
        ([whole, unranked], True),
        ([whole, [0, 0, 0, 0]], False),
        ([whole, [0, 1, -1, 2]], False),
    ):
        ranking = Ranking(ranks=torch.tensor(rows))
        ranks = ranks_for_loss(module, ranking)
        assert (ranks is not None) == handed
        assert ranks is None or torch.equal(ranks, ranking.ranks)
    ranking = Ranking(ranks=torch.tensor([whole]))
    for mapping, handed in ((Borda(), True), (OtherDCG(), False), (ZScore(), False), (NDCGPenalty(), False)):
        assert (ranks_for_loss(rlaif(tiny_model, advantage=mapping), ranking) is not None) == handed


class Apart(Oracle):
    """An order without ties, but for one group that it does not rank."""

    def rank(self, groups: Any) -> Ranking:
        orders = [[(i + shift) % 4 for i in range(4)] for shift in range(len(groups) - 1)]
        return Ranking(ranks=torch.tensor([*orders, [-1] * 4]))


@pytest.mark.parametrize("fused_head", [False, True])
def test_ranks_and_advantages_are_one_step_to_the_bit(
    tiny_model: str, data_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused_head: bool
) -> None:
    """As one advantage for each answer, and as one for each token, by a mapping of a user's."""

    class OfTokens(DCG):
        def __call__(self, ranking: Ranking, completions: Completions) -> torch.Tensor:
            return super().__call__(ranking, completions).unsqueeze(-1).expand(completions.ids.shape)

    recorders = []
    for ranks, mapping in ((True, DCG()), (False, DCG()), (False, OfTokens())):
        made: list[Experience] = []
        monkeypatch.setattr(rlaif_file, "make_experience", lambda *a, m=made: m.append(make_experience(*a)) or m[-1])
        if not ranks:
            monkeypatch.setattr(experience_file, "ranks_for_loss", lambda *_: None)
        loss = GRPORankLoss(kl_coef=0.05, fused_head=fused_head)
        module = rlaif(tiny_model, oracle=Apart(), rollout=Scripted(group_size=4), advantage=mapping, loss=loss)
        recorders.append(Recorder())
        trainer(tmp_path, max_steps=1, callbacks=[recorders[-1]]).fit(module, data(data_root, 3))
        assert (made[0].parts[0].ranks is not None) == ranks
    first, *others = recorders
    assert max(float(grad.abs().max()) for grad in first.grads[0].values()) > 0
    for other in others:
        assert all(torch.equal(grad, other.grads[0][name]) for name, grad in first.grads[0].items())
        assert other.metrics[0]["train/loss"] == first.metrics[0]["train/loss"]
