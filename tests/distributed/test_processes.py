"""Two processes on one machine: the same as one, never waiting for each other in vain."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from orlaif.cli.export import main as export
from orlaif.data.share import Share
from orlaif.demo.shapes import ShapesDataset, words
from orlaif.demo.tiny import make_tiny_model
from orlaif.distributed.sharding import Sharding
from orlaif.oracles import OracleFailure
from orlaif.oracles.ranker_model import load_ranker
from orlaif.policy.families import Family
from orlaif.tiny import tiny_model as write_tiny_model
from tests.processes import LORA, Job, errors_of, kill, run, start
from tests.training.test_rlaif import data


@pytest.fixture
def job(tiny_model: str, data_root: str, tmp_path: Path) -> Any:
    def make(name: str, **settings: Any) -> Job:
        (tmp_path / name).mkdir(exist_ok=True)
        return Job(folder=tiny_model, root=data_root, out=str(tmp_path / name / "out.pt"), **settings)

    return make


def same(one: dict[str, Any], two: dict[str, Any], tolerance: float = 1e-6) -> None:
    """Losses of every step, and weights at the end."""
    losses = [[m["train/loss"] for m in found["metrics"] if "train/loss" in m] for found in (one, two)]
    assert len(losses[0]) >= 2
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        assert float((two["weights"][name] - weight).abs().max()) <= tolerance, name
    assert one["totals"] == two["totals"]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(job: Any, strategy: str, lora: Any) -> None:
    """Five steps of sampled rollouts with a shared prefix, in parts."""
    settings: dict[str, Any] = {"steps": 5, "lora": lora, "module": {"microbatch": 3}}
    settings["policy"] = {"prefix": "shared", "prefix_attention": "split" if lora is None else "mask"}
    one = run(job("one", **settings))
    two = run(job("two", strategy=strategy, **settings), world=2)
    start = run(job("start", **settings | {"steps": 1}))
    assert one["sharded"] == 0
    assert two["sharded"] == (len(two["weights"]) if strategy == "fsdp2" else 0)
    assert max(float((one["weights"][n] - start["weights"][n]).abs().max()) for n in one["weights"]) > 1e-4
    same(one, two)


def test_two_processes_measure_and_replay_as_one(job: Any) -> None:
    """The second epoch is drawn by what both processes saw in the first; a third of its rows come again."""
    settings: dict[str, Any] = {"steps": 4, "replay": 0.34, "trainer": {"limit_train_batches": 2}}
    one, two = run(job("one", **settings)), run(job("two", strategy="ddp", **settings), world=2)
    rates = one["data"]["rates"]
    assert rates["epoch"] == 1
    assert len(rates["drawn"]) > 8
    assert len(set(rates["drawn"].values())) > 1
    assert sum(number for _, number in rates["sums"].values()) == 4 * 8 * 4
    assert two["data"]["rates"] == rates
    same(one, two)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_forked_cache_under_fsdp2_trains_as_the_duplicated_batch(job: Any, tmp_path: Path, lora: Any) -> None:
    """Two passes of the model in each step, of a hybrid, whose gradients meet in the cache between them."""
    folder = write_tiny_model("qwen3_5", tmp_path / "hybrid", words())
    settings: dict[str, Any] = {"steps": 3, "lora": lora, "module": {"microbatch": 3}, "fused_head": True}
    jobs = [job("one", policy={"prefix": "duplicate"}, **settings)]
    jobs.append(job("two", policy={"prefix": "fork"}, strategy="fsdp2", **settings))
    one, two = (run(replace(each, folder=folder), world=i + 1) for i, each in enumerate(jobs))
    assert two["sharded"] == len(two["weights"])
    same(one, two, 5e-6)  # three steps in float32, through convolutions and chunks of the delta rule


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_process_without_videos_keeps_step(job: Any, strategy: str) -> None:
    """All videos of process 1's first two batches are bad: it runs along without weight, for rlaif and sft."""
    for stage in ("rlaif", "sft"):
        clean = run(job("clean", steps=4, batch=4, stage=stage))
        order = train_order(job)
        lost = tuple(order[i] for i in (1, 3, 5, 7))  # every other row is process 1's
        settings: dict[str, Any] = {"steps": 4, "batch": 4, "stage": stage, "bad": {0: lost, 1: lost}}
        settings["data"] = {"on_bad_video": "skip", "max_bad_rate": 1.0}
        one = run(job("one", **settings))
        two = run(job("two", strategy=strategy, **settings), world=2)
        same(one, two)
        assert two["totals"]["data/bad_videos"] == 4
        assert any((clean["weights"][n] != two["weights"][n]).any() for n in two["weights"])


def train_order(job: Any) -> list[str]:
    """Ids of the training data in the order of the first epoch."""
    source = data(job("order").root, 4)
    dataset: Any = source.datasets["train"]
    dataset.load()
    return [prompt.id for prompt in dataset.epoch(0, source.seed, Share(), False, None)]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("scripted", [False, True])
def test_ragged_answers_and_lengths_keep_step(job: Any, strategy: str, scripted: bool) -> None:
    """Answers of up to 8 tokens, batches of one prompt; accumulated, and with a fused head."""
    settings: dict[str, Any] = {"steps": 3, "batch": 2, "scripted": scripted, "max_new_tokens": 8, "fused_head": True}
    settings["trainer"] = {"accumulate_grad_batches": 2}
    same(run(job("one", **settings)), run(job("two", strategy=strategy, **settings), world=2))


@pytest.mark.parametrize(("strategy", "accumulate", "lora"), [("ddp", 2, None), ("fsdp2", 1, None), ("fsdp2", 2, LORA)])
def test_several_updates_per_rollout_train_as_one(job: Any, strategy: str, accumulate: int, lora: Any) -> None:
    settings: dict[str, Any] = {"steps": 3, "lora": lora, "batch": 8 // accumulate}
    settings["trainer"] = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
    once = run(job("once", **settings))
    settings["module"] = {"microbatch": 3, "num_updates": 3}
    one = run(job("one", **settings))
    two = run(job("two", strategy=strategy, **settings), world=2)
    assert len(one["grads"]) == 3 * len(once["grads"]) == 9
    assert one["step"] == once["step"] == 3
    same(one, two, 2e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_reference_is_refreshed_alike(job: Any, lora: Any) -> None:
    """Sixty-four rows in batches of 32: epochs of two steps. In shards, all activations wait on the host."""
    settings: dict[str, Any] = {"steps": 5, "batch": 32, "lora": lora, "refresh": "epoch", "kl_coef": 0.5}
    settings["rate"] = 0.1 if lora is None else 10.0  # an adapter that begins at zero has small gradients
    one = run(job("one", **settings))
    two = run(job("two", strategy="fsdp2", policy={"activation_offloading": True}, **settings), world=2)
    kl = [metrics["train/kl"] for metrics in one["metrics"]]
    assert [kl[2], kl[4]] == pytest.approx([0, 0], abs=1e-9)
    assert min(kl[1], kl[3]) > 1e-7
    same(one, two)


def test_mixed_precision_and_recomputation_under_fsdp2(job: Any) -> None:
    settings: dict[str, Any] = {"steps": 3, "policy": {"gradient_checkpointing": True}}
    one = run(job("one", **settings))
    kept = Sharding(reshard_after_forward=False)
    away = settings | {"policy": settings["policy"] | {"activation_offloading": True}}
    same(one, run(job("two", strategy="fsdp2", sharding=kept, **away), world=2))
    mixed = Sharding(param_dtype="bfloat16")
    two = run(job("mixed", strategy="fsdp2", sharding=mixed, scripted=True, **settings), world=2)
    exact = run(job("exact", scripted=True, **settings))
    assert {weight.dtype for weight in two["weights"].values()} == {torch.float32}
    for name, grad in exact["grads"][0].items():
        got = two["grads"][0][name]
        if float(grad.norm()) > 1e-2 * max(float(g.norm()) for g in exact["grads"][0].values()):
            assert 0 < float((got - grad).norm() / grad.norm()) < 0.2, name


def test_states_are_forked_under_fsdp2(job: Any, tmp_path: Path) -> None:
    """Recurrent layers inside rows, selectively recomputed, their weights gathered layer by layer."""
    write_tiny_model("qwen3_5", tmp_path / "hybrid", words())
    settings: dict[str, Any] = {"batch": 4, "scripted": True, "module": {"microbatch": 1}}
    settings["policy"] = {"prefix": "shared", "gradient_checkpointing": "selective"}
    jobs = [replace(job(name, **settings), folder=str(tmp_path / "hybrid")) for name in ("one", "two")]
    one, two = run(jobs[0]), run(replace(jobs[1], strategy="fsdp2"), world=2)
    assert two["sharded"] == len(two["weights"])
    assert any("linear_attn" in name for name in two["grads"][0])
    same(one, two, 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_error_of_one_process_is_everyones(job: Any, strategy: str) -> None:
    lost = (train_order(job)[5],)
    settings: dict[str, Any] = {"strategy": strategy, "steps": 4, "batch": 4}
    errors = errors_of(job("video", bad={0: lost, 1: lost}, **settings), 2)
    assert errors[1].startswith("VideoError: /nowhere.mp4: ")
    assert errors[0] == f"{errors[1]} (on process 1)"

    errors = errors_of(job("data", bad={1: lost}, **settings), 2)
    assert errors[0] == errors[1]
    assert "the processes of this run disagree on the data: train: 64 rows with hash " in errors[0]

    strict = {"on_oracle_failure": OracleFailure(action="error")}
    errors = errors_of(job("oracle", oracle_fails_on=lost[0], module=strict, **settings), 2)
    assert errors[1].startswith(f"OracleError: oracle ByText gave no ranking for prompt '{lost[0]}': no idea")
    assert errors[0] == f"{errors[1]} (on process 1)"


def compared(root: str, folder: Path) -> str:
    """A file of 16 rows; every other one has a fourth answer."""
    rows = []
    dataset = ShapesDataset(root, "train", size=64)
    dataset.load()
    for i in range(16):
        prompt = dataset[i]
        row = {"id": prompt.id, "video": prompt.video, "question": prompt.question}
        answers = [prompt.answer, "red", "blue", *(["left"] if i % 2 else [])]
        rows.append(row | {"answers": answers, "ranks": list(range(len(answers)))})
    file = folder / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_listwise_rankers_train_as_one(job: Any, tmp_path: Path) -> None:
    """Gradients, losses and weights: orders are drawn by the prompt, and the loss counts the choices of both."""
    file = compared(job("x").root, tmp_path)
    settings: dict[str, Any] = {"steps": 3, "batch": 4, "stage": "listwise", "preferences": file, "lora": LORA}
    one, two = run(job("one", **settings)), run(job("two", strategy="ddp", **settings), world=2)
    same(one, two)
    assert "head" in one["weights"]
    for alone, together in zip(one["grads"], two["grads"], strict=True):
        assert alone.keys() == together.keys()
        assert any(float(grad.abs().max()) > 1e-4 for grad in alone.values())
        for name, grad in alone.items():
            torch.testing.assert_close(together[name], grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_rankers_train_as_one_and_are_exported(job: Any, strategy: str, tmp_path: Path) -> None:
    """With a head beside the model; all videos of one batch of process 1 are bad."""
    file = compared(job("x").root, tmp_path)
    settings: dict[str, Any] = {"steps": 4, "batch": 4, "stage": "ranker", "preferences": file, "lora": LORA}
    settings["policy"] = {"freeze_vision": True}
    one = run(job("one", **settings))
    export = {"export": True} if strategy == "fsdp2" else {}
    two = run(job("two", strategy=strategy, **settings, **export), world=2)
    same(one, two)
    assert "head" in one["weights"]
    settings |= {"command": "validate", "trainer": {"limit_val_batches": 1.0}, "data": {"eval_batch_size": 3}}
    alone, together = run(job("alone", **settings)), run(job("scored", strategy=strategy, **settings), world=2)
    assert alone[0]["val/pair_accuracy"] == pytest.approx(together[0]["val/pair_accuracy"], abs=1e-6)
    if export:
        ranker = load_ranker(str(tmp_path / "two" / "export"), dtype="float32")
        assert ranker.head is not None
        torch.testing.assert_close(ranker.head.weight.detach(), one["weights"]["head"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("lora", "merge"), [(None, False), (LORA, False), (LORA, True)])
def test_sharded_weights_are_exported_whole(job: Any, tmp_path: Path, lora: Any, merge: bool) -> None:
    settings: dict[str, Any] = {"steps": 2, "lora": lora, "rate": 0.1 if lora is None else 10.0, "merge": merge}
    run(job("two", strategy="fsdp2", export=True, **settings), world=2)
    run(job("one", export=True, **settings))
    folders = [str(tmp_path / name / "export") for name in ("one", "two")]
    assert sorted(os.listdir(folders[0])) == sorted(os.listdir(folders[1]))
    weights = []
    for folder in folders:
        if lora is not None and not merge:
            base = AutoModelForImageTextToText.from_pretrained(job("x").folder, dtype=torch.float32)
            model: Any = PeftModel.from_pretrained(base, folder)
        else:
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        weights.append(model.state_dict())
    start = AutoModelForImageTextToText.from_pretrained(job("x").folder, dtype=torch.float32).state_dict()
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert float((weights[1][name] - weight).abs().max()) <= 1e-6, name
    if lora is None or merge:
        assert max(float((weights[0][name] - weight).abs().max()) for name, weight in start.items()) > 1e-4


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_sharded_checkpoint_is_exported_by_one_process_and_by_going_on(job: Any, tmp_path: Path, lora: Any) -> None:
    settings: dict[str, Any] = {"steps": 2, "lora": lora, "rate": 0.1 if lora is None else 10.0, "save_every": 2}
    settings |= {"strategy": "fsdp2", "export": True}
    run(job("two", **settings), world=2)
    folder = tmp_path / "two" / "export"
    (saved,) = (tmp_path / "two" / "checkpoints").glob("*.ckpt")
    assert saved.is_dir()

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(next(folder.glob("*.safetensors")))

    before = weights(folder)
    policy = {"path": job("x").folder, "dtype": "float32", "lora": lora}
    module = {
        "policy": {"class_path": "orlaif.policy.Policy", "init_args": policy},
        "oracle": {"class_path": "orlaif.oracles.ReferenceAnswerOracle"},
    }
    recipe = {"model": {"class_path": "orlaif.OracleRLAIF", "init_args": module}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    export(["--ckpt", str(saved), "--to", str(tmp_path / "alone"), "--config", str(tmp_path / "recipe.yaml")])
    shutil.rmtree(folder)
    run(job("two", **settings, resume=str(saved)), world=2)
    for other in (weights(tmp_path / "alone"), weights(folder)):
        assert other.keys() == before.keys()
        assert all(torch.equal(other[name], weight) for name, weight in before.items())


def test_uneven_predictions_of_sharded_weights(job: Any, tmp_path: Path) -> None:
    """17 questions on two processes, four at a time: three batches here, two there, and never a wait."""
    lost = tuple(f"test-{i:05d}" for i in (0, 7, 11))
    settings: dict[str, Any] = {"command": "predict", "batch": 8, "leave_out": lost, "data": {"eval_batch_size": 4}}
    assert errors_of(job("one", **settings), 1) == {}
    assert errors_of(job("two", strategy="fsdp2", **settings), 2) == {}
    found = []
    for name in ("one", "two"):
        files = sorted((tmp_path / name / "predictions").glob("*.jsonl"))
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        found.append({row["id"]: row["prediction"] for row in rows})
        assert len(rows) == 17
    assert found[0] == found[1]


class AsksDecoder(Family):
    """Takes positions from the decoder, so that the tower runs for them."""

    def settle(self, model: Any, batch: Any) -> None:
        self.asks_decoder = True


@pytest.mark.parametrize(
    ("stage", "frozen", "asks"), [("rlaif", True, False), ("sft", True, False), ("sft", False, True)]
)
def test_clips_that_cannot_be_stacked_keep_step(job: Any, tmp_path: Path, stage: str, frozen: bool, asks: bool) -> None:
    """Process 1's first batch needs two passes, process 0's one; later it is the other way round, and even."""
    folder = write_tiny_model("llava_onevision", str(tmp_path / "llava"), words())
    order = train_order(job)
    ends = {order[1]: 0.5, order[4]: 0.5, order[8]: 0.5, order[9]: 0.5}
    settings: dict[str, Any] = {"steps": 3, "batch": 4, "stage": stage, "ends": ends, "fps": 8.0, "rate": 0.01}
    settings["policy"] = {"freeze_vision": frozen, **({"family": AsksDecoder()} if asks else {})}
    one = run(replace(job("one", **settings), folder=folder))
    two = run(replace(job("two", strategy="fsdp2", **settings), folder=folder), world=2)
    same(one, two, 1e-5)
    even = run(replace(job("even", **{**settings, "ends": {}}), folder=folder))
    assert any((even["weights"][n] != two["weights"][n]).any() for n in two["weights"])


def test_validation_counts_every_question_once(job: Any) -> None:
    """Nine questions on two processes: one is asked twice, so that each has as many."""
    settings: dict[str, Any] = {"command": "validate", "trainer": {"limit_val_batches": 1.0}}
    settings |= {"data": {"eval_batch_size": 4}, "leave_out": ("validation-00002",)}
    one = run(job("one", **settings))
    two = run(job("two", strategy="fsdp2", **settings), world=2)
    assert one == two
    assert set(one[0]) > {"val/accuracy", "val/accuracy/color"}


def test_a_judge_that_is_the_sharded_base(job: Any, tmp_path: Path) -> None:
    """Asked on each process about its own groups, and on one of them about none."""
    folder = str(tmp_path / "letters")
    make_tiny_model(folder, [*words(), *"ABCDEFGH"], hidden_size=32, num_layers=2, seed=1)
    order = train_order(job)
    lost = (order[1], order[3])
    settings: dict[str, Any] = {"steps": 2, "batch": 4, "lora": LORA, "own_judge": True, "bad": {0: lost, 1: lost}}
    settings["data"] = {"on_bad_video": "skip", "max_bad_rate": 1.0}
    one = run(replace(job("one", **settings), folder=folder))
    two = run(replace(job("two", strategy="fsdp2", **settings), folder=folder), world=2)
    same(one, two)


# ------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(job: Job) -> str:
    """The newest one of this run."""
    found = sorted((Path(job.out).parent / "checkpoints").glob("*.ckpt"))
    assert found
    return str(found[-1])


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("first", ["fsdp2", "ddp"])
def test_save_on_two_resume_on_one_and_back(job: Any, first: str, lora: Any) -> None:
    """Two steps on two processes, two on one, two on two; AdamW, in the middle of an epoch of 8 steps."""
    settings: dict[str, Any] = {"lora": lora, "optimizer": "adam", "rate": 1e-3 if lora is None else 1e-2}
    whole = run(job("whole", steps=6, **settings))
    a = job("a", steps=2, strategy=first, save_every=2, **settings)
    run(a, world=2)
    b = job("b", steps=4, save_every=2, resume=checkpoint(a), **settings)
    run(b)
    c = job("c", steps=6, strategy="fsdp2", save_every=2, resume=checkpoint(b), **settings)
    two = run(c, world=2)
    d = job("d", steps=6, strategy=first, resume=checkpoint(b), **settings)
    back = run(d, world=2)
    assert Path(checkpoint(a)).is_dir() == (first == "fsdp2")
    assert Path(checkpoint(b)).is_file()
    losses = [m["train/loss"] for m in two["metrics"]]
    assert losses == pytest.approx([m["train/loss"] for m in whole["metrics"]][4:], abs=2e-6)
    for name, weight in whole["weights"].items():
        # Adam divides by the size of the gradient, so rounding of a tiny one is a step of full size.
        for found in (two, back):
            difference = (found["weights"][name] - weight).abs()
            assert float(difference.max()) <= 6 * settings["rate"], name
            assert float(difference.mean()) <= 2e-6, name
    assert two["totals"] == whole["totals"]


def test_checkpoints_hold_what_was_trained_only(job: Any) -> None:
    one = job("one", steps=1, lora=LORA, save_every=1, refresh="epoch")
    run(one)
    state = torch.load(checkpoint(one), weights_only=False)["state_dict"]
    assert {name.split(".")[-2] for name in state} == {"default", "reference"}
    two = job("two", steps=1, lora=LORA, save_every=1, strategy="fsdp2")
    run(two, world=2)
    size = sum(path.stat().st_size for path in Path(checkpoint(two)).iterdir())
    weights = sum(path.stat().st_size for path in Path(one.folder).glob("*.safetensors"))
    assert size < 2 * weights / 3


@pytest.mark.parametrize("world", [1, 2])
def test_resumed_is_uninterrupted_bitwise(job: Any, world: int) -> None:
    settings: dict[str, Any] = {"optimizer": "adam", "rate": 1e-3, "strategy": "fsdp2" if world == 2 else "auto"}
    whole = run(job("whole", steps=5, **settings), world)
    first = job("first", steps=3, save_every=3, **settings)
    run(first, world)
    second = run(job("second", steps=5, resume=checkpoint(first), **settings), world)
    for name, weight in whole["weights"].items():
        assert torch.equal(second["weights"][name], weight), name


def test_a_checkpoint_of_another_recipe_is_refused(job: Any) -> None:
    first = job("first", steps=1, lora=LORA, save_every=1)
    run(first)
    found = errors_of(job("second", steps=2, strategy="fsdp2", resume=checkpoint(first)), 2)
    assert "more weights that this recipe trains; it belongs to another recipe" in found[0]


@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_ten_random_points(job: Any, world: int, tmp_path: Path) -> None:
    """SIGKILL at any moment, twice of them while a checkpoint gets its name; resumed each time with ``last``."""
    strategy = "fsdp2" if world == 2 else "auto"
    steps, every = (60 if world == 2 else 120), 2  # one process is fast: ten deaths must come before its end
    settings: dict[str, Any] = {"steps": steps, "optimizer": "adam", "rate": 1e-3, "strategy": strategy, "batch": 4}
    whole = run(job("whole", **settings), world)
    progress = tmp_path / "progress"
    settings |= {"save_every": every, "progress": str(progress), "resume": "last"}
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")  # pytest shows it where the test fails
    rng = random.Random(seed)
    deaths: list[tuple[str, int] | None] = [("before", 2), ("after", 1), *[None] * 8]
    rng.shuffle(deaths)
    for death in deaths:
        before = len(progress.read_text().splitlines()) if progress.exists() else 0
        started, errors = start(job("killed", dies_at_save=death, **settings), world)
        if death is None:
            wait_for(lines=before + rng.randint(1, 3), file=progress, errors=errors)
            time.sleep(rng.uniform(0, 0.03))  # a step takes some 10 ms: ten deaths come before the end
        else:
            started[0].join(280)
        kill(started)
    killed = run(job("killed", **settings), world)
    for name, weight in whole["weights"].items():
        assert torch.equal(killed["weights"][name], weight), name

    last, runs = 0, 0
    for word, step in (line.split() for line in progress.read_text().splitlines()):
        if word == "from":
            runs += 1
            assert int(step) >= (last - 1) // every * every  # what was saved is not lost
        last = int(step)
    assert runs == 11
    assert last == steps
    assert not list((tmp_path / "killed" / "checkpoints").glob("*unfinished*"))


def wait_for(lines: int, file: Path, errors: Any, timeout: float = 280) -> None:
    deadline = time.monotonic() + timeout
    while not (file.exists() and len(file.read_text().splitlines()) >= lines):
        assert errors.empty(), errors.get()
        assert time.monotonic() < deadline, f"nothing new behind {file.read_text().splitlines()[-1:]}"
        time.sleep(0.005)


def test_one_process_under_fsdp2_is_one_without(job: Any) -> None:
    """And a checkpoint of one is read by the other."""
    settings: dict[str, Any] = {"optimizer": "adam", "rate": 1e-3}
    one = run(job("one", steps=4, **settings))
    a = job("a", steps=2, strategy="fsdp2", save_every=2, **settings)
    run(a)
    b = run(job("b", steps=4, resume=checkpoint(a), **settings))
    same(one | {"metrics": one["metrics"][2:]}, b)
