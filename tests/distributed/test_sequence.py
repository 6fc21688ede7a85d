"""Processes that share their prompts: the losses, gradients and weights of one process, and what each of them has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.cli.plan.passes import Passes
from orlaif.demo.shapes import words
from orlaif.distributed.sequence import SequenceGroup, check_divides
from orlaif.policy import Policy
from orlaif.policy.divided_tower import frames_of
from orlaif.policy.prefix.attention import NAME
from orlaif.policy.prefix.divided import divide
from orlaif.policy.prefix.divided_attention import divided_attention
from orlaif.policy.prefix.layout import group_rows
from orlaif.policy.prefix.split import split_attention
from orlaif.policy.recomputation import SEEN_BY_HOOKS
from orlaif.policy.sequence import dealt_completions
from orlaif.rollout import Pipelined, Rollout
from orlaif.tiny import tiny_model as write_tiny_model
from orlaif.training.divided_rollout import sample_together
from orlaif.training.ranker import PreferenceRankerTraining
from orlaif.types import Completions, PromptBatch
from tests.conftest import random_completions
from tests.distributed.test_processes import same
from tests.processes import LORA, Job, run
from tests.training.test_rlaif import rlaif

#: Seconds that a run of several processes may take on a machine that computes for others as well.
LIMIT = 600.0
# More than two runs may take: the limit that says which processes hang, and ends them, is the one to be met.
pytestmark = pytest.mark.timeout(2 * LIMIT + 300)


@pytest.fixture
def job(tiny_model: str, data_root: str, tmp_path: Path) -> Any:
    def make(name: str, **settings: Any) -> Job:
        (tmp_path / name).mkdir(exist_ok=True)
        return Job(**{"folder": tiny_model, "root": data_root, "out": str(tmp_path / name / "out.pt")} | settings)

    return make


def shared(settings: dict[str, Any], number: int) -> dict[str, Any]:
    """The same settings, each prompt shared by so many processes."""
    return settings | {"policy": settings.get("policy", {}) | {"sequence_parallel": number}}


def same_throughout(one: dict[str, Any], two: dict[str, Any], tolerance: float = 1e-6, apart: bool = False) -> None:
    """Losses, weights and totals; the gradients of every step, beside the largest of them; what the log says."""
    same(one, two, tolerance)
    for here, there in zip(one["grads"], two["grads"], strict=True):
        assert here.keys() == there.keys()
        largest = max(float(grad.abs().max()) for grad in here.values())
        for name, grad in here.items():
            assert float((there[name] - grad).abs().max()) <= tolerance * max(1.0, largest), name
    for here, there in zip(one["metrics"], two["metrics"], strict=True):
        names = {name for name in here if not name.startswith("time/")}
        if apart:  # means over groups that have an order, each process's its own: those of several are means of means
            names -= {"oracle/length_tau", "oracle/position_tau"}
            there = {name: value for name, value in there.items() if not name.endswith("_tau")}
        assert names == {name for name in there if not name.startswith("time/")}
        for name in names:
            assert there[name] == pytest.approx(here[name], abs=10 * tolerance, rel=tolerance, nan_ok=True), name


# ------------------------------------------------------------ two processes


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_share_each_prompt(job: Any, strategy: str) -> None:
    """Two steps of sampled rollouts, groups of four in parts: full under DDP, LoRA and a frozen tower in shards.

    What the two keep for the backward pass waits on the host, where a hook sees it.
    """
    settings: dict[str, Any] = {"batch": 2, "module": {"microbatch": 1}}
    if strategy == "fsdp2":
        settings |= {"lora": LORA, "policy": {"freeze_vision": True}, "fused_head": True}
    one = run(job("one", **settings), timeout=LIMIT)
    settings["policy"] = settings.get("policy", {}) | {"activation_offloading": True}
    if strategy == "fsdp2":
        settings["policy"] |= {"gradient_checkpointing": "selective", "activation_offloading": SEEN_BY_HOOKS}
    two = run(job("two", strategy=strategy, **shared(settings, 2)), world=2, timeout=LIMIT)
    assert two["sharded"] == (len(two["weights"]) if strategy == "fsdp2" else 0)
    assert two["shares_frames"]
    same_throughout(one, two)


def test_states_are_handed_on_between_processes(job: Any, tmp_path: Path) -> None:
    """Recurrent layers of a hybrid, recomputed; supervised, where the second process has no answer of its own."""
    folder = write_tiny_model("qwen3_5", tmp_path / "hybrid", words())
    settings: dict[str, Any] = {"batch": 2, "stage": "sft", "policy": {"gradient_checkpointing": True}}
    one = run(job("one", folder=folder, **settings), timeout=LIMIT)
    two = run(job("two", folder=folder, strategy="ddp", **shared(settings, 2)), world=2, timeout=LIMIT)
    assert any("linear_attn" in name for name in two["grads"][0])
    assert any("visual" in name for name in two["grads"][0])
    assert two["shares_frames"]
    same_throughout(one, two, 5e-6)


# ----------------------------------------------------------- four processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("number", [2, 4])
def test_four_processes_train_as_one(
    job: Any, tmp_path: Path, kind: str, lora: Any, strategy: str, number: int
) -> None:
    """Each prompt on two of them or on all four, prompts dealt out to the rest; ragged groups of four."""
    folder = write_tiny_model(kind, tmp_path / "model", words())
    settings: dict[str, Any] = {"folder": folder, "batch": 4, "lora": lora, "scripted": True, "max_new_tokens": 8}
    one = run(job("one", **settings), timeout=LIMIT)
    four = run(job("four", strategy=strategy, **shared(settings, number)), world=4, timeout=LIMIT)
    assert four["shares_frames"]
    same_throughout(one, four, 2e-5 if kind == "qwen3_5" else 5e-6, apart=True)


# ------------------------------------------------------- what each of them has


def group(index: int, size: int) -> SequenceGroup:
    return SequenceGroup(size=size, index=index, group=None)


def test_prompts_are_divided_and_completions_stay_whole() -> None:
    """A prompt of five behind one of padding, completions of two tokens and one."""
    prompt_mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    completion_mask = torch.tensor([[[1, 1], [1, 0]]]).bool()
    first, last = (divide(prompt_mask, completion_mask, group(i, 2)) for i in range(2))
    assert first.kept.tolist() == [[0, 1, 5, 6, 7]]
    assert last.kept.tolist() == [[2, 3, 4, 5, 6, 7]]
    assert (first.ends.tolist(), last.ends.tolist()) == ([1], [2])
    assert first.rows.segment.tolist() == [[0, 0, 1, 1, 2]]
    assert first.rows.predict[0, :, 1].tolist() == [2, 1]  # the first completion's second token, and a masked one
    with pytest.raises(ValueError, match=r"policy.sequence_parallel is 3, and a prompt has 5 tokens; it must have 6"):
        divide(prompt_mask, completion_mask, group(0, 3))


def test_completions_are_dealt_out_in_turns() -> None:
    """Five to two processes: the second has a third one without a token."""
    ids = torch.arange(5).view(1, 5, 1)
    completions = Completions(ids=ids, mask=torch.ones_like(ids).bool(), texts=(tuple("abcde"),), logps=ids.float())
    first, second = (dealt_completions(completions, group(i, 2)) for i in range(2))
    assert (first.ids.flatten().tolist(), first.texts) == ([0, 2, 4], (("a", "c", "e"),))
    assert second.ids.flatten().tolist() == [1, 3, 4]
    assert second.mask.flatten().tolist() == [True, True, False]
    assert dealt_completions(completions, None) is completions


def test_frames_of_several_videos_are_divided() -> None:
    """Three, two and one, the last a picture, to two processes and to three."""
    grids = torch.tensor([[3, 2, 4], [2, 4, 4], [1, 2, 2]])
    assert frames_of(grids, 0, 3).tolist() == [[3, 2, 4]]
    assert frames_of(grids, 3, 6).tolist() == [[2, 4, 4], [1, 2, 2]]
    assert frames_of(grids, 2, 4).tolist() == [[1, 2, 4], [1, 4, 4]]
    assert frames_of(grids, 4, 6).tolist() == [[1, 4, 4], [1, 2, 2]]


class Second(SequenceGroup):
    """The second of two processes; the first says what is given here."""

    said: ClassVar[list[Any]] = []

    def of_each(self, value: Any) -> list[Any]:
        return [self.said.pop(0), value]


def test_each_process_samples_some_of_the_prompts(policy: Policy, batch: PromptBatch) -> None:
    """Five prompts: the second process samples two, each by its own generator; with another's tokens, the first all."""
    others = random_completions(policy, 3, 2, 4)
    sampled: list[tuple[str, ...]] = []

    def make(some: PromptBatch, generators: Any) -> Completions:
        sampled.append(tuple(prompt.id for prompt in some.prompts))
        assert [generator.initial_seed() for generator in generators] == [1, 3]
        return random_completions(policy, 2, 2, 5, seed=1)

    module: Any = SimpleNamespace(policy=policy, sequence=Second(size=2, index=1, group=None))
    generators = [torch.Generator().manual_seed(i) for i in range(5)]
    Second.said = [True, (others, None)]
    found = sample_together(module, make, batch, generators)
    assert sampled == [(batch.prompts[1].id, batch.prompts[3].id)]
    mine = random_completions(policy, 2, 2, 5, seed=1)
    assert [found.texts[i] for i in (0, 2, 4)] == list(others.texts)
    assert torch.equal(found.ids[[0, 2, 4], :, :4], others.ids)
    assert torch.equal(found.ids[[1, 3]], mine.ids)
    assert torch.equal(found.mask[[1, 3]], mine.mask)
    assert not found.mask[[0, 2, 4], :, 4:].any()

    everything = random_completions(policy, 5, 2, 4)
    Second.said = [True, (everything, None)]
    encoded_otherwise = replace(batch, input_ids=batch.input_ids.flip(0), attention_mask=batch.attention_mask.flip(0))
    assert torch.equal(sample_together(module, make, encoded_otherwise, generators).ids, everything.ids)
    Second.said = [True, (None, "ValueError: no")]
    with pytest.raises(RuntimeError, match=r"samples some of this one's prompts stopped: ValueError: no"):
        sample_together(module, make, batch, generators)
    assert len(sampled) == 2


class Alone(SequenceGroup):
    """A group of which one process is there: the others' tensors have their shapes."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(self.size, *x.shape)

    def scatter_sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x[0])


@dataclass(frozen=True)
class By:
    """Attention by ``function`` and nothing around it, on the meta device, which autocast does not know."""

    function: Any
    given: Any

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> Any:
        return self.function(query, key, value, self.given, scale)


def test_activations_of_a_long_row_halve_with_two(tiny_model: str) -> None:
    """16,384 tokens, eight answers of 64 among them, through the decoder and back, by the counter of the plan."""
    passes = Passes(Policy(tiny_model, dtype="bfloat16"))
    decoder, hidden = passes.base.get_decoder(), passes.text.hidden_size
    decoder.set_attn_implementation(NAME)
    prompt_mask = torch.ones(1, 16384 - 512, dtype=torch.long)

    def bytes_of(rows: Any, grouping: Any) -> tuple[int, int]:
        inputs = torch.empty(1, rows.shape[1], hidden, dtype=torch.bfloat16, device="meta", requires_grad=True)
        places = torch.empty(3, 1, rows.shape[1], dtype=torch.long, device="meta")
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta")
        with LiveBytes([inputs, places, mask, *decoder.parameters(), *decoder.buffers()]) as live:
            given = {"inputs_embeds": inputs, "position_ids": places, "attention_mask": mask, "grouping": grouping}
            out = decoder(use_cache=False, **given).last_hidden_state
            kept = live.now
            out.backward(torch.empty_like(out))
        return kept, live.peak

    rows = group_rows(prompt_mask, torch.ones(1, 8, 64).bool())
    one = bytes_of(rows, By(split_attention, rows))
    both = [divide(prompt_mask, torch.ones(1, 4, 64).bool(), Alone(size=2, index=i, group=None)) for i in range(2)]
    assert [division.rows.shape[1] for division in both] == [8192, 8192]
    for division in both:
        kept, peak = bytes_of(division.rows, By(divided_attention, division))
        assert kept / one[0] == pytest.approx(0.5, abs=0.01)
        assert peak / one[1] < 0.6  # with the other's keys and values, for as long as a layer attends


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_divided_is_refused(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"sequence_parallel is 0; it must be 1 or more processes"):
        Policy(tiny_model, sequence_parallel=0)
    with pytest.raises(ValueError, match=r"sequence_parallel is 2; it needs .* they are 'sdpa' and 'duplicate'"):
        Policy(tiny_model, sequence_parallel=2, prefix="duplicate")
    with pytest.raises(ValueError, match=r"prefix_attention is 'mask'; with policy.sequence_parallel: 2 it must be"):
        Policy(tiny_model, sequence_parallel=2, prefix_attention="mask")
    with pytest.raises(ValueError, match=r"is 2; it must divide the number of processes \(.*\), which is 3$"):
        check_divides(2, 3)
    module, ahead = rlaif(tiny_model), rlaif(tiny_model, rollout=Pipelined(Rollout(group_size=4), 1))
    module.policy = ahead.policy = Policy(tiny_model, sequence_parallel=2)
    module.check_sharing(4)
    with pytest.raises(ValueError, match=r"sequence_parallel is 2, which PreferenceRankerTraining does not know"):
        PreferenceRankerTraining(module.policy).check_sharing(4)
    with pytest.raises(ValueError, match=r"sequence_parallel is 2, and rollout is Pipelined; it must be one by"):
        ahead.check_sharing(4)
