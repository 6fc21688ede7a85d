"""The benchmark with a pretrained language model inside: what it reads, renders, builds and sums up."""

from __future__ import annotations

import itertools
import json
import random
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SmolVLMForConditionalGeneration

from benchmarks.pretrained import arms, clips, connector, facts, model, report, tower
from benchmarks.pretrained.stages import Stages, samples, shares
from orlaif.cli.recipe import read_recipe
from orlaif.demo.shapes import SHAPES
from orlaif.oracles import DecisionJudge
from orlaif.policy import Policy
from orlaif.tiny.tokens import tiny_tokenizer
from orlaif.types import CandidateGroup, VideoPrompt
from tests.conftest import REPO

TRUE = "A red circle moves left, then stops."


def said(*values: str) -> dict[str, str]:
    return dict(zip(facts.FACTS, values, strict=True))


def group(*answers: str) -> CandidateGroup:
    prompt = VideoPrompt(id="p", video="x.mp4", question=clips.QUESTION, answer=TRUE)
    return CandidateGroup(prompt=prompt, clip=None, answers=answers)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (TRUE, said("red", "circle", "left", "stops")),
        (
            "A violet ball goes upwards and disappears!",
            dict(zip(facts.FACTS, ("purple", "circle", "up", "vanishes"), strict=True)),
        ),
        ("The box GETS SMALLER", {"shape": "square", "then": "shrinks"}),
        ("A red or blue cross returns to the left", {"shape": "cross", "way": "left", "then": "goes back"}),
        ("It moves left, then right.", {}),
        ("The upper bluebird is redder.", {}),
        ("", {}),
    ],
)
def test_what_a_free_sentence_says(text: str, read: dict[str, str]) -> None:
    assert facts.read(text) == read


def test_every_label_says_its_facts() -> None:
    for values in itertools.product(*facts.WORDS.values()):
        said = dict(zip(facts.FACTS, values, strict=True))
        assert all(facts.read(facts.sentence(said, form)) == said for form in range(len(facts.FORMS)))


def test_most_facts_come_first_and_the_unreadable_last() -> None:
    answers = (
        "A red circle moves right, then stops.",  # three
        TRUE,  # four
        "I cannot see the video.",  # none read
        "A blue square moves up, then grows.",  # none right
        "The circle is red; it goes down and halts.",  # three
    )
    assert facts.rank(group(*answers)) == [1, 0, 3, 2, 1]


def test_a_fact_in_two_ways_is_not_right() -> None:
    assert facts.right("A red circle moves left or right and stops.", TRUE) == {
        "color": True,
        "shape": True,
        "way": False,
        "then": True,
    }


def centre(frame: torch.Tensor) -> tuple[float, float, int]:
    """Column and row of what is brighter than the ground, and how many pixels it has."""
    rows, columns = torch.nonzero(frame.max(0).values > 100, as_tuple=True)
    return columns.float().mean().item(), rows.float().mean().item(), len(rows)


def test_clips_show_what_their_facts_say() -> None:
    said = {"color": "red", "shape": "circle", "way": "left", "then": "stops"}
    seen = [centre(frame) for frame in clips.render(said, random.Random(0))]
    moved = [a[0] - b[0] for a, b in itertools.pairwise(seen)]
    assert moved == pytest.approx([40 / 3] * 3 + [0] * 4, abs=1)
    grown = clips.render({**said, "then": "grows"}, random.Random(0))
    assert centre(grown[6])[2] > 2 * centre(grown[5])[2]
    back = clips.render({**said, "way": "down", "then": "goes back"}, random.Random(0))
    assert centre(back[5])[1] - centre(back[7])[1] == pytest.approx(24, abs=1)
    gone = clips.render({**said, "then": "vanishes"}, random.Random(0))
    assert gone[6].float().std() == 0
    assert (gone[5] == torch.tensor(clips.COLORS["red"], dtype=torch.uint8)[:, None, None]).all(0).any()


def test_a_split_is_written_once_and_the_same(tmp_path) -> None:
    path = clips.write_split(str(tmp_path / "a"), "val", size=3)
    other = clips.write_split(str(tmp_path / "b"), "val", size=2)
    rows, others = ([json.loads(row) for row in Path(one).read_text().splitlines()] for one in (path, other))
    assert rows[:2] == others
    assert [row["video"] for row in rows] == [f"val/0000{i}.mp4" for i in range(3)]
    assert len(facts.read(rows[0]["answer"])) == 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A SmolVLM around a random Llama of 32 channels, saved; the Llama's rows as they were."""
    tokenizer = tiny_tokenizer(("what", "happens", "red"), {"video_token": "<video>"})
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    language = LlamaForCausalLM(config)
    before, end = language.get_input_embeddings().weight.detach().clone(), tokenizer.eos_token_id
    built, processor = model.around(language, tokenizer, model.Tower(hidden=32, layers=1, heads=2))
    folder = str(tmp_path_factory.mktemp("pretrained"))
    built.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, before, end


def test_the_language_model_inside_is_the_one_it_was(tiny) -> None:
    folder, before, end = tiny
    policy = Policy(folder, dtype="float32").load()
    tokenizer = policy.processor.tokenizer
    rows = policy.network.get_input_embeddings().weight
    kept = [i for i in range(len(before)) if i != end]
    assert torch.equal(rows[kept], before[kept])
    assert policy.network.get_output_embeddings().weight is rows
    assert len(rows) == len(tokenizer) == len(before) + 128
    closing = tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert policy.eos_ids == (closing,) == (len(rows) - 1,)
    assert torch.equal(rows[closing], before[end])
    assert torch.equal(rows[end], before.mean(0))
    assert policy.placeholder_ids == [tokenizer.convert_tokens_to_ids("<image>")]


def test_what_a_token_should_say_of_a_frame() -> None:
    kinds = torch.tensor([[0, 3], [5, 0]])
    places = torch.tensor([[-0.6, 0.0, 0.12], [0.1, 0.7, 0.5]])
    said = {kind: [connector.SAID[kind][i] for i in one] for kind, one in connector.choices(kinds, places).items()}
    assert said == {
        "color": ["red", "white"],
        "shape": [SHAPES[3], SHAPES[0]],
        "across": ["left", "middle"],
        "along": ["middle", "down"],
        "size": ["small", "big"],
    }


def test_tower_and_connector_learn_and_the_language_model_stays(tiny) -> None:
    folder, _, _ = tiny
    built = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in built.named_parameters()}

    def moved() -> set[str]:
        return {
            name.split(".")[1] for name, weight in built.named_parameters() if not torch.equal(weight, before[name])
        }

    tower.train(built, steps=1, batch=2)
    assert moved() == {"vision_model", "connector"}
    before = {name: weight.clone() for name, weight in built.named_parameters()}
    connector.train(built, Letters(), steps=1, batch=2)
    assert moved() == {"connector"}
    frames, _, _ = tower.frames_and_targets(random.Random(1), 8)
    tower.as_loud_as_words(built, frames)
    tokens = built.model.connector(built.model.vision_model(frames / 127.5 - 1).last_hidden_state)
    words = built.get_input_embeddings().weight
    assert tokens.square().mean().item() == pytest.approx(words.square().mean().item(), rel=1e-5)


class Letters:
    """A tokenizer to which each word is one token, by its length and first letter."""

    def encode(self, word: str) -> list[int]:
        return [(ord(word.strip()[0]) + 3 * len(word)) % 90]


def test_the_judge_is_asked_at_the_server_that_was_started(tmp_path, monkeypatch) -> None:
    ended = []

    @contextmanager
    def serving(model: str, log: str):
        yield "http://127.0.0.1:5/v1"
        ended.append(model)

    monkeypatch.setattr(arms, "serving", serving)
    monkeypatch.setattr(arms, "model_folder", lambda folder: f"{folder}/bf16")
    with arms.judged(Stages(str(tmp_path), str(REPO / "recipes")), None) as words:
        recipe = ["--config", str(REPO / "recipes" / "pretrained_rlaif.yaml"), *words, f"--run_dir={tmp_path}"]
        oracle = read_recipe(recipe).model.oracle
    assert ended == [f"{tmp_path}/judge_model/bf16"]
    assert isinstance(oracle, DecisionJudge)
    assert (oracle.client.base_url, oracle.client.model) == ("http://127.0.0.1:5/v1", ended[0])
    with arms.judged(Stages(str(tmp_path)), "own.yaml") as words:
        assert words == ["--config", "own.yaml"]


def test_shares_are_of_all_questions() -> None:
    truths = {"a": TRUE, "b": "The blue cross moves up and grows."}
    answers = {"a": TRUE, "b": "A blue cross moves down, then grows."}
    found = shares(answers, truths)
    assert (found["questions"], found["facts"], found["all"]) == (2, 0.875, 0.5)
    assert found["by_fact"] == {"color": 1.0, "shape": 1.0, "way": 0.5, "then": 1.0}
    assert sorted(one["id"] for one in samples(answers, truths)) == ["a", "b"]


def test_a_fact_by_its_values() -> None:
    truths = {"a": TRUE, "b": "A blue cross moves up, then stops.", "c": "A blue cross moves up, then grows."}
    answers = {"a": TRUE, "b": "A blue cross moves up, then grows.", "c": truths["c"]}
    assert report.by_value(answers, truths, "then") == {"grows": 1.0, "stops": 0.5}


def test_gains_are_points_over_the_warm_start() -> None:
    seeds = {str(s): {"rule": {"facts": f, "all": 0.5}} for s, f in enumerate((0.7, 0.72, 0.74))}
    table = report.gains({"facts": 0.6, "all": 0.5}, seeds)
    assert list(table) == ["rule"]
    assert table["rule"]["facts"]["mean"] == pytest.approx(12)
    assert table["rule"]["facts"]["half_95_interval"] == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)
    assert table["rule"]["all"] == {"mean": 0.0, "half_95_interval": 0.0}


def kept(ranks: list[int], texts: list[str], step: int = 0, failure: str | None = None) -> str:
    answers = [{"text": text, "rank": rank} for rank, text in zip(ranks, texts, strict=True)]
    return json.dumps({"step": step, "prompt": {"answer": TRUE}, "failure": failure, "answers": answers})


def test_an_oracles_order_is_held_against_the_facts(tmp_path) -> None:
    texts = [TRUE, "A red circle moves up, then stops.", "A red circle moves up, then grows."]
    rows = [
        kept([0, 1, 2], texts),  # as the facts say: 3 of 3 pairs
        kept([2, 1, 0], texts),  # reversed: 0
        kept([0, 2, 1], texts),  # 2
        kept([0, 1, 2], [TRUE] * 3),  # nothing to tell apart
        kept([0, 0, 0], texts),  # half of 3
        kept([-1, -1, -1], texts, failure="no answer"),
        kept([2, 1, 0], texts, step=25),  # after the first steps
    ]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.jsonl").write_text("\n".join(['{"orlaif_samples": 1}', *rows]))
    kept_groups = report.groups(str(tmp_path))
    found = report.agreement(kept_groups)
    assert found == {"pairs": pytest.approx(6.5 / 12), "groups": 7, "tied": 1, "unranked": 1}
    assert report.curve(kept_groups) == [pytest.approx((5 * 0.75 + 1) / 6, abs=1e-4), 0.75]
    assert report.bests(kept_groups, every=25) == [
        {"step": 0, "rendered": TRUE, "answer": TRUE},
        {"step": 25, "rendered": TRUE, "answer": texts[2]},
    ]


@pytest.mark.slow
@pytest.mark.skipif(bool(model.missing()), reason=model.missing() or "nothing")
def test_the_real_language_model_answers() -> None:
    language, tokenizer = model.language_model()
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = language.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == "The capital of France is Paris."
