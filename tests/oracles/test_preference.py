"""The preference ranker: its losses by hand, its scores, its training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from orlaif import VideoDataModule
from orlaif.data.datasets import PromptDataset
from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.shapes import ShapesDataset
from orlaif.oracles.preference import PreferenceRanker, bradley_terry_loss, plackett_luce_loss
from orlaif.oracles.ranker_model import Ranker
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.training.callbacks import ExportHuggingFace
from orlaif.training.ranker import PreferenceRankerTraining, pair_accuracy
from orlaif.types import CandidateGroup, PreferencePrompt, VideoPrompt
from tests.conftest import make_policy
from tests.policy.prefix.test_layout import count


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bradley_terry_by_hand() -> None:
    """Ranks 0, 1, 1: two pairs; an answer without a rank is in none."""
    scores = torch.tensor([[2.0, 0.5, 3.0, 9.0]], requires_grad=True)
    total, number = bradley_terry_loss(scores, torch.tensor([[0, 1, 1, -1]]))
    assert int(number) == 2
    assert float(total) == pytest.approx(-math.log(sigmoid(1.5)) - math.log(sigmoid(-1.0)))
    total.backward()
    assert scores.grad is not None
    expected = [-(1 - sigmoid(1.5)) - (1 - sigmoid(-1.0)), 1 - sigmoid(1.5), 1 - sigmoid(-1.0), 0.0]
    assert scores.grad[0].tolist() == pytest.approx(expected)


def test_plackett_luce_by_hand() -> None:
    """Three answers in order: the best among three, then the next among two."""
    scores = torch.tensor([[1.0, 0.0, -1.0, 5.0]], requires_grad=True)
    total, number = plackett_luce_loss(scores, torch.tensor([[0, 1, 2, -1]]))
    assert int(number) == 2
    first = math.e / (math.e + 1 + 1 / math.e)
    second = 1 / (1 + 1 / math.e)
    assert float(total) == pytest.approx(-math.log(first) - math.log(second))
    total.backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert float(scores.grad.sum()) == pytest.approx(0.0, abs=1e-6)


def test_plackett_luce_of_ties_is_breslows() -> None:
    total, number = plackett_luce_loss(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0, 0, 1]]))
    everyone = math.e + 1 + 1 / math.e
    assert int(number) == 2
    assert float(total) == pytest.approx(-math.log(math.e / everyone) - math.log(1 / everyone))


@pytest.mark.parametrize("loss", [bradley_terry_loss, plackett_luce_loss])
def test_equal_answers_teach_nothing(loss: Any) -> None:
    total, number = loss(torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[0, 0]]))
    assert float(total) == 0.0
    assert int(number) == 0


def test_pair_accuracy_by_hand() -> None:
    right, pairs = pair_accuracy(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2, 2]]))
    # 0 before 1, 2, 3: right; 1 before 2: a tie of scores; 1 before 3: wrong; 2 and 3 are equal
    assert (float(right), int(pairs)) == (3.5, 5)


class Compared(PromptDataset):
    """The embedded data set with right and wrong answers, compared."""

    def __init__(self, inner: ShapesDataset, split: slice) -> None:
        self.inner, self.split = inner, split

    def prepare(self) -> None:
        self.inner.prepare()

    def load(self) -> None:
        self.inner.load()
        self.rows = list(range(len(self.inner)))[self.split]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> PreferencePrompt:
        prompt = self.inner[self.rows[index]]
        assert prompt.answer is not None
        assert prompt.options is not None
        wrong = [option for option in prompt.options if option != prompt.answer]
        answers = (wrong[0], prompt.answer, "seconds")  # of another kind altogether
        fields = {name: getattr(prompt, name) for name in ("id", "video", "question", "answer", "options", "category")}
        return PreferencePrompt(**fields, answers=answers, ranks=(1, 0, 2))


def test_scores_are_read_at_the_end_of_each_answer(tiny_model: str, shapes: ShapesDataset) -> None:
    """Against the hidden state of the end-of-sequence token in transformers' own forward, one answer at a time."""
    ranker = Ranker(make_policy(tiny_model)).load()
    policy = ranker.policy
    prompts = [shapes[i] for i in range(3)]
    clips = [decode_clip(prompt, UniformSampling(4)) for prompt in prompts]
    answers = [("red", "blue circle"), ("one",), ("left", "red", "two one")]
    encode = ProcessorEncoder(policy.processor)
    seen = count(policy)
    scores = ranker(encode(prompts, clips), answers)
    assert seen["calls"] == 1
    assert scores.shape == (3, 3)
    assert scores.isnan().tolist() == [[False, False, True], [False, True, True], [False] * 3]
    tokenizer = policy.processor.tokenizer
    for i, own in enumerate(answers):
        for j, answer in enumerate(own):
            alone = encode(prompts[i : i + 1], clips[i : i + 1])
            tail = torch.tensor([[*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]])
            ids = torch.cat([alone.input_ids, tail], 1)
            inputs = dict(alone.mm_inputs)
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, tail.shape[1]))
            hidden = policy.network.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), **inputs
            ).last_hidden_state[:, -1]
            assert float(scores[i, j]) == pytest.approx(float(ranker.head(hidden)), abs=1e-4)  # type: ignore[misc]


@pytest.mark.parametrize("lora", [None, {"r": 8, "target_modules": "all-linear"}])
def test_training_learns_and_the_export_ranks(
    tiny_model: str, data_root: str, shapes: ShapesDataset, tmp_path: Path, lora: Any
) -> None:
    torch.manual_seed(0)
    train = Compared(ShapesDataset(data_root, "train", size=64), slice(0, 48))
    val = Compared(ShapesDataset(data_root, "train", size=64), slice(48, 64))
    module = PreferenceRankerTraining(
        Policy(tiny_model, dtype="float32", lora=lora),
        loss="plackett_luce" if lora else "bradley_terry",
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        seed=0,
    )
    data = VideoDataModule(train=train, val=val, test=val, sampling=UniformSampling(4), batch_size=8)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[ExportHuggingFace()],
    )
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test/pair_accuracy"] > 0.8  # an answer of another kind is easily told from the others
    group_prompts = [val[i] for i in range(4)]
    groups = [
        CandidateGroup(
            prompt=VideoPrompt(id=p.id, video=p.video, question=p.question),
            clip=decode_clip(p, UniformSampling(4)),
            answers=(*p.answers, p.answers[0]),
        )
        for p in group_prompts
    ]
    oracle = PreferenceRanker(str(tmp_path / "export"), dtype="float32", batch_size=3)
    ranking = oracle.rank(groups)
    assert ranking.scores is not None
    assert ranking.ranks[:, 0].tolist() == ranking.ranks[:, 3].tolist()
    module.eval()
    clips = [group.clip for group in groups]
    batch = ProcessorEncoder(module.policy.processor)(group_prompts, clips)
    with torch.no_grad():
        expected = module.ranker(batch, [p.answers for p in group_prompts])
    torch.testing.assert_close(ranking.scores[:, :3], expected, atol=1e-4, rtol=0)


def test_a_folder_that_is_no_ranker(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"has no ranker_head.safetensors"):
        _ = PreferenceRanker(tiny_model).ranker


def test_prompts_without_comparisons_are_refused(tiny_model: str, shapes: ShapesDataset) -> None:
    module = PreferenceRankerTraining(Policy(tiny_model, dtype="float32"))
    module.configure_model()
    prompt = shapes[0]
    clip = decode_clip(prompt, UniformSampling(4))
    batch = ProcessorEncoder(module.policy.processor)([prompt], [clip])
    with pytest.raises(ValueError, match="has no compared answers"):
        module.scored(batch)


@pytest.mark.parametrize(
    ("answers", "ranks", "message"),
    [
        (("a",), (0,), "answers has 1"),
        (("a", "b"), (0,), "expected one for each of 2 answers"),
        (("a", "b"), (1, 2), "the best 0"),
    ],
)
def test_a_prompt_that_is_no_comparison(answers: tuple[str, ...], ranks: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreferencePrompt(id="1", video="v", question="q", answers=answers, ranks=ranks)
