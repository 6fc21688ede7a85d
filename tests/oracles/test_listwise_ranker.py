"""The listwise ranker: Plackett-Luce by enumeration, what each answer is read in sight of, training and use."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from orlaif import VideoDataModule
from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.shapes import ShapesDataset
from orlaif.oracles import PreferenceRanker
from orlaif.oracles.preference import bradley_terry_loss, plackett_luce_loss
from orlaif.oracles.ranker_model import ListwiseRanker, Ranker, drawn_orders, load_ranker
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.training.callbacks import ExportHuggingFace
from orlaif.training.ranker import ListwiseRankerTraining
from orlaif.types import CandidateGroup, VideoPrompt
from tests.conftest import make_policy
from tests.oracles.test_preference import Compared
from tests.policy.prefix.test_layout import count


def likelihood(scores: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    """Probability of the order, summed over all permutations of all answers that agree with it; no two ranks equal."""
    total = scores.new_zeros(())
    for order in itertools.permutations(range(len(scores))):
        if [ranks[i] for i in order if ranks[i] >= 0] == sorted(rank for rank in ranks if rank >= 0):
            strengths = scores[list(order)].exp()
            total = total + (strengths / strengths.flip(0).cumsum(0).flip(0)).prod()
    return total


@pytest.mark.parametrize("ranks", [[0, 1], [2, 0, 1], [1, 3, 0, 2], [1, -1, 0, 2], [-1, 0, -1, 1, 2]])
def test_plackett_luce_is_the_sum_over_the_permutations_that_agree(ranks: list[int]) -> None:
    """Value and gradient; an answer without a rank may stand anywhere."""
    scores = torch.randn(len(ranks), dtype=torch.float64, generator=torch.Generator().manual_seed(len(ranks)))
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    total, number = plackett_luce_loss(ours[None], torch.tensor([ranks]))
    expected = -likelihood(theirs, ranks).log()
    assert int(number) == sum(rank >= 0 for rank in ranks) - 1
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)
    total.backward()
    expected.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=0)


def test_a_winner_over_equals_is_the_sum_over_their_orders() -> None:
    """Equals at the end are no choice: ranks 0, 1, 1 say only who is first."""
    scores = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64)
    total, number = plackett_luce_loss(scores[None], torch.tensor([[0, 1, 1]]))
    assert int(number) == 1
    either = likelihood(scores, [0, 1, 2]) + likelihood(scores, [0, 2, 1])
    assert float(total) == pytest.approx(-math.log(float(either)), abs=1e-12)


def test_plackett_luce_knows_no_scale_of_ranks_no_shift_of_scores_and_no_places() -> None:
    scores, ranks = torch.tensor([[0.5, -1.0, 2.0, 0.1]], dtype=torch.float64), torch.tensor([[1, 0, 2, 1]])
    total, _ = plackett_luce_loss(scores, ranks)
    order = [2, 0, 3, 1]
    for other in ((scores + 7, ranks), (scores, ranks * 3), (scores[:, order], ranks[:, order])):
        assert float(plackett_luce_loss(*other)[0]) == pytest.approx(float(total), abs=1e-12)


def test_of_two_answers_plackett_luce_is_bradley_terry() -> None:
    scores, ranks = torch.tensor([[0.5, -1.0], [2.0, 3.0]]), torch.tensor([[0, 1], [0, 1]])
    both = [loss(scores, ranks) for loss in (plackett_luce_loss, bradley_terry_loss)]
    torch.testing.assert_close(both[0], both[1])


def test_orders_are_drawn_once_and_reversed() -> None:
    first, second, third = drawn_orders(6, 3, "p")
    assert second == first[::-1]
    assert sorted(third) == [0, 1, 2, 3, 4, 5]
    assert drawn_orders(6, 3, "p") == [first, second, third]
    assert any(drawn_orders(6, 1, key)[0] != first for key in "abc")


def test_an_answer_is_scored_in_sight_of_those_before_it(tiny_model: str, shapes: ShapesDataset) -> None:
    """Against transformers' own forward of one prompt and its answers in a row, one pass for all groups."""
    ranker = ListwiseRanker(make_policy(tiny_model)).load()
    policy = ranker.policy
    assert ranker.head is not None
    prompts = [shapes[i] for i in range(3)]
    clips = [decode_clip(prompt, UniformSampling(4)) for prompt in prompts]
    answers = [("red", "blue circle"), ("one",), ("left", "", "two one")]
    orders = [[1, 0], [0], [2, 0, 1]]
    encode = ProcessorEncoder(policy.processor)
    seen = count(policy)
    scores = ranker(encode(prompts, clips), answers, [[order] for order in orders])
    assert seen["calls"] == 1
    assert scores.isnan().tolist() == [[False, False, True], [False, True, True], [False] * 3]
    tokenizer = policy.processor.tokenizer
    for i, (own, order) in enumerate(zip(answers, orders, strict=True)):
        alone = encode(prompts[i : i + 1], clips[i : i + 1])
        row, expected = [], torch.zeros(len(own))
        for place in order:
            row += [*tokenizer(own[place], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            ids = torch.cat([alone.input_ids, torch.tensor([row])], 1)
            inputs = dict(alone.mm_inputs)
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(row)))
            with torch.no_grad():
                hidden = policy.network.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs)
                expected[place] = ranker.head(hidden.last_hidden_state[0, -1])
        torch.testing.assert_close(scores[i, : len(own)].detach(), expected - expected.mean(), atol=1e-4, rtol=0)


def test_scores_are_averaged_over_an_order_and_its_reverse(tiny_model: str, shapes: ShapesDataset) -> None:
    ranker = ListwiseRanker(make_policy(tiny_model)).load()
    batch = ProcessorEncoder(ranker.policy.processor)([shapes[0]], [decode_clip(shapes[0], UniformSampling(4))])
    answers = [("red", "blue", "one two")]
    both = drawn_orders(3, 2, shapes[0].id)
    with torch.no_grad():
        apart = [ranker(batch, answers, [[order]]) for order in both]
        assert float((apart[0] - apart[1]).abs().max()) > 1e-3  # who comes first sees less
        torch.testing.assert_close(ranker(batch, answers), (apart[0] + apart[1]) / 2)
        # The same sequence of answers is read whatever their places in the group are.
        moved = ranker(batch, [("one two", "red", "blue")], [[[(place + 1) % 3 for place in both[0]]]])
    torch.testing.assert_close(moved[:, [1, 2, 0]], apart[0])


def test_a_listwise_ranker_learns_and_its_export_ranks(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    train = Compared(ShapesDataset(data_root, "train", size=64), slice(0, 32))
    val = Compared(ShapesDataset(data_root, "train", size=64), slice(48, 64))
    module = ListwiseRankerTraining(
        Policy(tiny_model, dtype="float32", lora={"r": 8, "target_modules": "all-linear"}),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        seed=0,
    )
    assert module.loss == "plackett_luce"
    data = VideoDataModule(train=train, val=val, test=val, sampling=UniformSampling(4), batch_size=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=10,
        limit_val_batches=0,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[ExportHuggingFace()],
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    assert found["test/pair_accuracy"] > 0.75  # an answer of another kind is easily told from the others
    prompts = [val[i] for i in range(4)]
    groups = [
        CandidateGroup(
            prompt=VideoPrompt(id=p.id, video=p.video, question=p.question),
            clip=decode_clip(p, UniformSampling(4)),
            answers=(*p.answers, p.answers[0]),
        )
        for p in prompts
    ]
    folder = str(tmp_path / "export")
    ranking = PreferenceRanker(folder, dtype="float32", batch_size=3).rank(groups)
    assert ranking.scores is not None
    assert ranking.ranks[:, 0].tolist() == ranking.ranks[:, 3].tolist()
    module.eval()
    batch = ProcessorEncoder(module.policy.processor)(prompts, [group.clip for group in groups])
    with torch.no_grad():
        expected = module.ranker(batch, [p.answers for p in prompts])
    torch.testing.assert_close(ranking.scores[:, :3], expected, atol=1e-4, rtol=0)
    once = PreferenceRanker(folder, dtype="float32", num_orders=1).rank(groups).scores
    assert once is not None
    assert not torch.allclose(once, ranking.scores, atol=1e-3)


def test_a_group_that_does_not_fit_is_told_its_numbers(tiny_model: str, shapes: ShapesDataset) -> None:
    ranker = ListwiseRanker(make_policy(tiny_model)).load()
    batch = ProcessorEncoder(ranker.policy.processor)([shapes[0]], [decode_clip(shapes[0], UniformSampling(4))])
    text = ranker.policy.config.get_text_config(decoder=True)
    before, asked = text.max_position_embeddings, batch.input_ids.shape[1]
    row = 3 + 3 + 1  # each closed, and one behind all
    try:
        text.max_position_embeddings = asked + row
        ranker(batch, [("red", "blue", "one")])
        text.max_position_embeddings -= 1
        told = (
            f"has {asked} tokens and its 3 answers {row} in a row, .* has {asked + row - 1} positions; give it smaller"
        )
        with pytest.raises(ValueError, match=told):
            ranker(batch, [("red", "blue", "one")])
    finally:
        text.max_position_embeddings = before


def test_a_pairwise_ranker_has_no_orders(tiny_model: str, tmp_path: Path) -> None:
    Ranker(Policy(tiny_model, dtype="float32")).load().export(str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"num_orders is 3; .* is a pairwise ranker"):
        load_ranker(str(tmp_path / "one"), 3, dtype="float32")
    for number in (0, 1000):
        with pytest.raises(
            ValueError, match=rf"oracle\.num_orders is {number}; it must be 1 to 52: each order is one more"
        ):
            PreferenceRanker("folder", num_orders=number)
    with pytest.raises(ValueError, match=r"oracle\.batch_size is 0; it must be 1 or more"):
        PreferenceRanker("folder", batch_size=0)
