"""The comparison of mappings: what its figures rest on, on questions made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.ordinal_vs_scalar import policy, training
from benchmarks.ordinal_vs_scalar.judge import VOICES, grades, heard
from benchmarks.ordinal_vs_scalar.mappings import MAPPINGS, heard_as, mapping_of
from benchmarks.ordinal_vs_scalar.questions import END, VALUES, WORDS, Questions, stacked
from benchmarks.ordinal_vs_scalar.report import accuracy_at
from benchmarks.ordinal_vs_scalar.sweep import Sweep, best
from orlaif.advantages import DCG

RED, BLUE, UP = (WORDS.index(word) for word in ("red", "blue", "up"))
IT, IS = WORDS.index("it"), WORDS.index("is")


def questions(seed: int, count: int = 32) -> Questions:
    generator = torch.Generator().manual_seed(seed)
    colors = torch.zeros(count, len(WORDS), dtype=torch.bool)
    colors[:, [WORDS.index(word) for word in ("red", "green", "blue", "yellow")]] = True
    return Questions(
        seen=torch.rand(count, VALUES, generator=generator),
        kind=torch.zeros(count, dtype=torch.int64),
        answer=torch.full((count,), RED),
        options=colors,
    )


def test_the_last_word_is_graded() -> None:
    words = torch.tensor([[[RED, END, END, END], [IT, IS, BLUE, END], [UP] * 4, [END] * 4, [IT, IS, END, END]]])
    options = questions(0).options[:1]
    assert grades(words, torch.tensor([RED]), options).tolist() == [[1.0, 0.5, 0.0, 0.0, 0.0]]


def test_the_voices_of_the_judge() -> None:
    grade = torch.tensor([[0.0, 0.5, 1.0, 1.0]])
    words = torch.tensor([[[BLUE, END, END, END], [IT, IS, BLUE, END], [RED, END, END, END], [IT, IS, RED, END]]])
    scores = {voice: heard(voice, grade, words, torch.Generator().manual_seed(0)) for voice in VOICES}
    assert scores["clean"].tolist() == grade.tolist()
    torch.testing.assert_close(scores["length"], torch.tensor([[0.0, 0.8, 1.0, 1.3]]))
    a, b, c, d = scores["rescaled"][0].tolist()
    assert a < b < c == d
    assert b - a == pytest.approx(c - b, rel=1e-4)
    assert set(scores["quantised"].flatten().tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert len(set(scores["heavy"].flatten().tolist())) == 4
    with pytest.raises(ValueError, match="voice is 'loud'"):
        heard("loud", grade, words, torch.Generator())


def test_what_sees_the_order_alone_is_blind_to_another_scale() -> None:
    """Why its runs under ``rescaled`` are those under ``clean``; and the others' are not."""
    grade = torch.tensor([[0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0]])
    words = torch.zeros(1, 8, 4, dtype=torch.int64)
    other = heard("rescaled", grade, words, torch.Generator().manual_seed(0))
    logps = torch.linspace(-3, -1, 8).view(1, 8, 1).expand(1, 8, 4)
    mask = torch.ones_like(words, dtype=torch.bool)
    for name in MAPPINGS:
        mapping = mapping_of(name, "rescaled")
        first, second = (training.advantages_of(mapping, scores, words, mask, logps) for scores in (grade, other))
        assert torch.equal(first, second) == (heard_as(name, "rescaled") == "clean"), name


def test_a_greedy_answer_has_the_log_probs_of_its_logits() -> None:
    weights = policy.fresh(0)
    asked = stacked([questions(0)])
    context = policy.read(weights, asked.seen, asked.kind)
    words, mask, logps = policy.write(weights, context)
    again = policy.logits_of(weights, context, words).log_softmax(-1)
    torch.testing.assert_close(logps, again.gather(-1, words.unsqueeze(-1)).squeeze(-1) * mask)
    assert bool((words == again.argmax(-1))[mask].all())
    assert bool((words[~mask] == END).all())


def test_adam_of_one_policy_is_torchs() -> None:
    ours = training.stacked([policy.fresh(0)])
    theirs = {name: value.detach().clone().requires_grad_() for name, value in ours.items()}
    adam = training.StackedAdam(ours, torch.tensor([0.01]), steps=10)
    optimizer = torch.optim.Adam(theirs.values(), lr=1.0)
    for share in (1.0, 1.0, 8 / 9, 7 / 9):  # one step up, nine down
        optimizer.param_groups[0]["lr"] = 0.01 * share
        optimizer.zero_grad()
        sum(value.square().sum() for value in theirs.values()).backward()
        clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step()
        adam.step(sum(value.square().sum() for value in ours.values()))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=1e-5)


def test_a_policy_learns_the_same_alone_and_among_others() -> None:
    def trained(seeds: list[int], rates: list[float]) -> policy.Weights:
        start = {name: torch.cat([policy.fresh(seed)[name] for seed in seeds]) for name in policy.fresh(0)}
        asked = stacked([questions(seed) for seed in seeds])
        (found,) = training.train(
            DCG(),
            "quantised",
            start,
            seeds,
            rates,
            asked,
            (3,),
            lambda w: {n: v.detach().clone() for n, v in w.items()},
        )
        return found

    together, alone = trained([0, 1, 1], [0.01, 0.01, 0.001]), trained([1], [0.001])
    for name, value in alone.items():
        torch.testing.assert_close(together[name][2:], value, atol=1e-5, rtol=1e-4)
        assert not torch.equal(together[name][1], together[name][2])  # the rate is each one's own


def test_accuracy_is_read_where_the_ends_of_a_sweep_first_reach_a_kl() -> None:
    curve = [(0.5, 0.5), (1.0, 0.7), (0.8, 0.75), (3.0, 0.9)]
    assert accuracy_at(curve, 0.75) == pytest.approx(0.6)
    assert accuracy_at(curve, 2.0) == pytest.approx(0.75 + 0.15 * 1.2 / 2.2)
    assert (accuracy_at(curve, 0.2), accuracy_at(curve, 4.0)) == (0.5, 0.9)


def test_lower_rates_are_tried_where_the_lowest_is_best(tmp_path) -> None:
    accuracy = {0.0: 0.3, 3.125e-5: 0.5, 6.25e-5: 0.7, 1.25e-4: 0.6}

    class Known(Sweep):
        def _tried(self, mapping, voice, rates, at, by):
            return {rate: accuracy.get(rate, 0.1) for rate in rates}

    tuned = Known(tmp_path).tuned("dcg", "clean")
    assert (len(tuned), best(tuned)) == (9, 6.25e-5)
    accuracy[1e-3] = 0.8
    tuned = Known(tmp_path).tuned("dcg", "clean")
    assert (len(tuned), best(tuned)) == (7, 1e-3)
    assert best({0.2: 0.5, 0.1: 0.5}) == 0.1


def test_a_rate_is_chosen_by_what_it_is_read_by_and_a_run_names_its_commit(tmp_path, monkeypatch) -> None:
    """Greedy answers of the lower rate are the best, sampled ones of the higher."""
    readings = {1.25e-4: (0.2, 0.1), 1e-3: (0.8, 0.5), 2e-3: (0.6, 0.7)}

    class Known(Sweep):
        def _weights(self, seeds):
            return {}

        def _set(self, seeds, split):
            return None

    def train(mapping, voice, start, seeds, rates, questions, at, watch):
        values = [readings.get(rate, (0.1, 0.0)) for rate in rates]
        return [{"accuracy": [g for g, _ in values], "sampled": [s for _, s in values]} for _ in at]

    monkeypatch.setattr("benchmarks.ordinal_vs_scalar.sweep.train", train)
    monkeypatch.setenv("ORLAIF_COMMIT", "abc1234")
    sweep = Known(tmp_path)
    assert best(sweep.tuned("dcg", "clean", by="accuracy")) == 1e-3
    assert best(sweep.tuned("dcg", "clean", by="sampled")) == 2e-3
    assert {reading["commit"] for run in Sweep(tmp_path).runs.values() for reading in run} == {"abc1234"}
