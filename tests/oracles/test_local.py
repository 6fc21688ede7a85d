"""Local judges on a tiny model: what they ask, and what they make of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.shapes import ShapesDataset, words
from orlaif.oracles import ListwiseJudge, PairwiseJudge
from orlaif.oracles.aggregate import bradley_terry
from orlaif.oracles.failure import OracleFailure, rank_groups
from orlaif.oracles.local import letter_ids
from orlaif.oracles.prompting import ballots, opening
from orlaif.oracles.sorting import sorting_network
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import Family
from orlaif.rollout import generate
from orlaif.types import CandidateGroup, Completions, OracleError, VideoClip, VideoPrompt
from tests.families import FAMILIES, original_numbering, vision_tower
from tests.oracles.lettered import make_lettered_model

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Qwen3-VL whose tokenizer knows capital letters."""
    return make_lettered_model(str(tmp_path_factory.mktemp("judge")), seed=3)


@pytest.fixture(scope="module")
def groups(data_root: str) -> list[CandidateGroup]:
    dataset = ShapesDataset(data_root, "train", size=64)
    dataset.load()
    made = []
    answers = [("red", "blue", "green", "red"), ("one", "two", "circle", "blue"), ("left", "left", "left", "left")]
    for i, own in enumerate(answers):
        clip = decode_clip(dataset[i], UniformSampling(4))
        made.append(CandidateGroup(prompt=dataset[i], clip=clip, answers=own))
    return made


def sharpened(judge: Any) -> Any:
    """Weights that make its opinions strong."""
    with torch.no_grad():
        for parameter in judge.judge.network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    return judge


def verdict(judge: PairwiseJudge, group: CandidateGroup, first: str, second: str) -> float:
    """Probability of A, from a prompt of its own through transformers' forward."""
    policy = judge.judge
    question = f'{judge.instructions}\n\n{opening(group.prompt.question)}\nA: "{first}"\nB: "{second}"'
    prompt = VideoPrompt(id="1", video="v", question=question)
    batch = ProcessorEncoder(policy.processor)([prompt], [group.clip])
    with torch.no_grad():
        logits = policy.network(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, **batch.mm_inputs
        ).logits
    return float(logits[0, -1, letter_ids(policy, 2)].double().softmax(-1)[0])


def test_pairs_by_log_probs_in_both_orders(judge_model: str, groups: list[CandidateGroup]) -> None:
    """Strengths from verdicts that are asked one prompt at a time."""
    judge = sharpened(PairwiseJudge(judge_model, dtype="float32"))
    ranking = judge.rank(groups)
    assert judge.take_counts() == {"verdicts": 6.0 + 12.0}
    assert ranking.scores is not None
    for i, group in enumerate(groups[:2]):
        texts = list(dict.fromkeys(group.answers))
        wins = torch.zeros(len(texts), len(texts), dtype=torch.float64)
        for a, b in itertools.permutations(range(len(texts)), 2):
            p = verdict(judge, group, texts[a], texts[b])
            wins[a, b] += p
            wins[b, a] += 1 - p
        expected = bradley_terry(wins)
        assert float(expected.max() - expected.min()) > 0.005
        for answer, score in zip(group.answers, ranking.scores[i].tolist(), strict=True):
            assert score == pytest.approx(float(expected[texts.index(answer)]), abs=1e-5)
    assert ranking.ranks[0, 0] == ranking.ranks[0, 3]  # the same answer twice
    assert ranking.ranks[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("pairs", ["all", "network"])
def test_the_video_is_paid_once_per_group(judge_model: str, groups: list[CandidateGroup], pairs: Any) -> None:
    judge = PairwiseJudge(judge_model, pairs=pairs, dtype="float32")
    calls = {"vision": 0}
    tower = vision_tower(judge.judge.network)
    tower.register_forward_hook(lambda *_: calls.__setitem__("vision", calls["vision"] + 1))
    judge.rank(groups)
    assert calls["vision"] == 1


def test_a_network_of_pairs_sorts_by_the_verdicts(judge_model: str, groups: list[CandidateGroup]) -> None:
    """With verdicts that follow the alphabet, the network finds the alphabet."""
    judge = PairwiseJudge(judge_model, pairs="network", dtype="float32")

    def alphabet(part: Any, texts: list[list[str]], pairs: list[list[tuple[int, int]]]) -> list[torch.Tensor]:
        wins = [torch.zeros(len(own), len(own), dtype=torch.float64) for own in texts]
        for own, asked, table in zip(texts, pairs, wins, strict=True):
            for a, b in asked:
                table[(a, b) if own[a] < own[b] else (b, a)] += 1
        return wins

    judge._wins = alphabet  # type: ignore[method-assign]
    assert judge.rank(groups).ranks.tolist() == [[2, 0, 1, 2], [2, 3, 1, 0], [0, 0, 0, 0]]


def test_a_network_asks_the_model(judge_model: str, groups: list[CandidateGroup]) -> None:
    judge = sharpened(PairwiseJudge(judge_model, pairs="network", dtype="float32"))
    ranking = judge.rank(groups[1:2])
    assert sorted(ranking.ranks[0].tolist()) == [0, 1, 2, 3]
    assert judge.take_counts() == {"verdicts": 10.0}  # 5 comparisons of 4 answers, in both orders


@pytest.mark.parametrize("n", range(1, 9))
def test_the_network_sorts_everything(n: int) -> None:
    """The 0-1 principle: a network that sorts all sequences of zeros and ones sorts all."""
    stages = sorting_network(n)
    for bits in itertools.product([0, 1], repeat=n):
        row = list(bits)
        for stage in stages:
            assert len({place for pair in stage for place in pair}) == 2 * len(stage)
            for i, j in stage:
                if row[j] < row[i]:
                    row[i], row[j] = row[j], row[i]
        assert row == sorted(bits)
    assert sum(map(len, stages)) == [0, 1, 3, 5, 9, 12, 16, 19][n - 1]


@pytest.mark.parametrize("num_ballots", [1, 3])
def test_a_constrained_list_is_always_an_order(
    judge_model: str, groups: list[CandidateGroup], num_ballots: int
) -> None:
    judge = sharpened(ListwiseJudge(judge_model, dtype="float32", num_ballots=num_ballots, batch_size=2))
    ranking = judge.rank(groups)
    assert ranking.failures == ()
    assert ranking.ranks[0, 0] == ranking.ranks[0, 3]
    assert ranking.ranks[2].tolist() == [0, 0, 0, 0]
    if num_ballots == 1:
        assert sorted(ranking.ranks[1].tolist()) == [0, 1, 2, 3]
    again = ListwiseJudge(judge_model, dtype="float32", num_ballots=num_ballots, batch_size=16)
    assert torch.equal(sharpened(again).rank(groups).ranks, ranking.ranks)


def test_a_constrained_list_follows_the_model(judge_model: str, groups: list[CandidateGroup]) -> None:
    """Letter by letter the most probable of those that are left."""
    judge = sharpened(ListwiseJudge(judge_model, dtype="float32", num_ballots=1))
    policy, group = judge.judge, groups[1]
    (ballot,) = ballots(group, 1, 0)
    prompt = VideoPrompt(id="1", video="v", question=f"{judge.instructions}\n\n{ballot.asked()}")
    batch = ProcessorEncoder(policy.processor)([prompt], [group.clip])
    letters, written = letter_ids(policy, 4), []
    for _ in range(4):
        ids = torch.cat([batch.input_ids, letters[written][None]], 1)
        extra = {"mm_token_type_ids": torch.nn.functional.pad(batch.mm_inputs["mm_token_type_ids"], (0, len(written)))}
        with torch.no_grad():
            logits = policy.network(
                input_ids=ids, attention_mask=torch.ones_like(ids), **{**batch.mm_inputs, **extra}
            ).logits[0, -1, letters]
        logits[written] = -torch.inf
        written.append(int(logits.argmax()))
    assert judge.rank([group]).ranks[0].tolist() == ballot.ranks([[place] for place in written])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_list_of_clips_of_unequal_sizes(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every letter's log-prob among those left, as the judge gives it for the ballot alone, numbered as it should be.

    The second clip is longer than it is high and wide, so that transformers' numbering of Qwen2.5-VL is another.
    """
    monkeypatch.setattr("tests.families.words", lambda: [*words(), *"ABCDEFGH"])
    FAMILIES[family](str(tmp_path / "judge"))
    judge = sharpened(ListwiseJudge(str(tmp_path / "judge"), dtype="float32", num_ballots=1))
    policy = judge.judge
    generator = torch.Generator().manual_seed(0)
    answers = [("red", "blue", "green", "one"), ("red", "blue", "green", "red"), ("two", "blue", "two", "two")]
    made = []
    for i, (frames, height, width) in enumerate([(4, 48, 96), (24, 48, 48), (6, 96, 48)]):
        pixels = torch.randint(0, 256, (frames, 3, height, width), generator=generator, dtype=torch.uint8)
        times = torch.arange(frames, dtype=torch.float64) / 2
        clip = VideoClip(frames=pixels, pts_s=times, duration_s=frames / 2, path=f"{i}")
        prompt = VideoPrompt(id=f"{i}", video="v", question="what is this")
        made.append(CandidateGroup(prompt=prompt, clip=clip, answers=answers[i]))
    written: list[Completions] = []
    monkeypatch.setattr(
        "orlaif.oracles.listwise.generate", lambda *args, **kw: written.append(generate(*args, **kw)) or written[-1]
    )
    ranking = judge.rank(made)
    (completions,) = written
    for i, group in enumerate(made):
        (ballot,) = ballots(group, 1, 0)
        question = f"{judge.instructions}\n\n{ballot.asked()}"
        batch = ProcessorEncoder(policy.processor)([replace(group.prompt, question=question)], [group.clip])
        letters, order = letter_ids(policy, len(ballot.texts)), []
        for step in range(len(letters)):
            ids = torch.cat([batch.input_ids, letters[order][None]], 1)
            inputs = dict(batch.mm_inputs)
            if (kinds := inputs.get("mm_token_type_ids")) is not None:
                inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, step))
            with torch.no_grad(), original_numbering(policy):
                logits = policy.network(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0, -1]
            left = logits[letters]
            left[order] = -torch.inf
            order.append(int(left.argmax()))
            assert float(completions.logps[i, 0, step]) == pytest.approx(float(left.log_softmax(-1).max()), abs=1e-4)
        assert ranking.ranks[i].tolist() == ballot.ranks([[place] for place in order])


@pytest.mark.parametrize("kind", [ListwiseJudge, PairwiseJudge])
def test_judges_encode_by_the_family_of_their_model(judge_model: str, groups: list[CandidateGroup], kind: Any) -> None:
    encoded: list[str] = []

    class Mine(Family):
        def encode(self, processor: Any, prompt: str, *args: Any) -> dict[str, Any]:
            encoded.append(prompt)
            return super().encode(processor, prompt, *args)

    judge = kind(None)
    judge.bind(Policy(judge_model, lora=LORA, dtype="float32", family=Mine()).load())
    encoded.clear()  # of the check at load
    judge.rank(groups[:1])
    assert len(encoded) == (2 if kind is ListwiseJudge else 1)


def test_free_replies_of_a_model_that_knows_nothing_are_failures(
    judge_model: str, groups: list[CandidateGroup]
) -> None:
    judge = ListwiseJudge(judge_model, output="parsed", dtype="float32", max_tokens=8)
    ranking = judge.rank(groups)
    exchanges = judge.take_exchanges()
    assert {exchange.prompt_id for exchange in exchanges} == {group.prompt.id for group in groups[:2]}
    assert all(exchange.replied for exchange in exchanges)
    assert judge.take_exchanges() == []
    assert [error.prompt_id for error in ranking.failures] == [group.prompt.id for group in groups[:2]]
    assert ranking.ranks.tolist() == [[-1] * 4, [-1] * 4, [0] * 4]


def test_the_policys_own_base_with_the_adapter_off(judge_model: str, groups: list[CandidateGroup]) -> None:
    expected = PairwiseJudge(judge_model, dtype="float32").rank(groups)
    torch.manual_seed(0)
    policy = Policy(judge_model, lora=LORA, dtype="float32").load()
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    judge = PairwiseJudge(None)
    with pytest.raises(ValueError, match="no policy has been bound"):
        judge.rank(groups)
    judge.bind(policy)
    found = judge.rank(groups)
    assert found.scores is not None
    assert expected.scores is not None
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="this policy has no adapter"):
        PairwiseJudge(None).bind(Policy(judge_model))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PairwiseJudge("m", pairs="some"), "oracle.pairs is 'some'"),  # type: ignore[arg-type]
        (lambda: PairwiseJudge("m", method="borda"), "oracle.method is 'borda'"),  # type: ignore[arg-type]
        (lambda: PairwiseJudge("m", batch_size=0), "oracle.batch_size is 0"),
        (lambda: ListwiseJudge("m", output="free"), "oracle.output is 'free'"),  # type: ignore[arg-type]
        (lambda: ListwiseJudge("m", num_ballots=0), "oracle.num_ballots is 0"),
        (lambda: ListwiseJudge("m", num_ballots=1000), "oracle.num_ballots is 1000; it must be 1 to 52"),
        (lambda: ListwiseJudge("m", method="median"), "oracle.method is 'median'"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_tokenizer_without_letters_is_refused(tiny_model: str, groups: list[CandidateGroup], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no token of its own for each of the letters A \.\. B"):
        PairwiseJudge(tiny_model, dtype="float32").rank(groups)


@pytest.mark.parametrize("kind", [ListwiseJudge, PairwiseJudge])
def test_a_clip_that_the_judge_does_not_take_costs_its_group(
    judge_model: str, groups: list[CandidateGroup], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """The policy's processor took it; what becomes of the group is for ``on_oracle_failure`` to say."""
    bad = replace(groups[0].clip, frames=groups[0].clip.frames[..., :7])
    asked = [replace(groups[0], clip=bad), groups[1]]
    encode = Family.encode

    def choosy(self: Family, processor: Any, text: str, clip: VideoClip, metadata: Any) -> Any:
        if clip.frames.shape[-1] < 8:
            raise ValueError("too narrow")
        return encode(self, processor, text, clip, metadata)

    monkeypatch.setattr(Family, "encode", choosy)
    judge = kind(judge_model, dtype="float32")
    ranking = rank_groups(judge, asked, OracleFailure(retries=0))
    assert [error.prompt_id for error in ranking.failures] == [groups[0].prompt.id]
    assert "too narrow" in ranking.failures[0].cause
    assert ranking.ranks[0].tolist() == [-1] * 4
    assert ranking.ranks[1].tolist() == judge.rank(groups[1:2]).ranks[0].tolist()
    with pytest.raises(OracleError, match=r"its model cannot be shown .*too narrow"):
        rank_groups(judge, asked, OracleFailure(action="error"))
