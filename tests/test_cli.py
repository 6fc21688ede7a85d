"""The command line as a user meets it: whole runs, and mistakes that end before any long work starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orlaif.cli import run
from tests.conftest import REPO

POLICY = "--model.init_args.policy.init_args.path"
SIZES = {"train": 64, "val": 10, "test": 20}


def small(recipe: str, subcommand: str, run_dir: Path, model: str, data_root: str, *extra: str) -> list[str]:
    """Arguments of a short run of a demo recipe."""
    arguments = [subcommand, "--config", str(REPO / "recipes" / recipe), f"--run_dir={run_dir}", f"{POLICY}={model}"]
    for split, size in SIZES.items():
        arguments += [
            f"--data.init_args.{split}.init_args.{key}={value}" for key, value in (("root", data_root), ("size", size))
        ]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    return [*arguments, "--data.init_args.batch_size=8", *quiet, *extra]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, data_root: str) -> Path:
    """Four steps of recipes/demo_rlaif.yaml, validated after 2 and 4."""
    run_dir = tmp_path_factory.mktemp("run")
    steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    run(small("demo_rlaif.yaml", "fit", run_dir, tiny_model, data_root, *steps))
    return run_dir


def test_everything_lies_below_the_run_dir(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"checkpoints", "export", "config.yaml"} <= names
    assert any(name.startswith("events.out") for name in names)
    assert list((finished / "checkpoints").glob("*.ckpt"))


def test_tensorboard_holds_the_metrics_and_the_completions_board(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    scalars = {"train/kl", "train/grad_norm", "time/rollout", "oracle/tie_rate", "val/accuracy", "val/accuracy/color"}
    assert scalars <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/num_tokens")] == [0, 1, 2, 3]
    images = [f"completions/validation-{i:05d}" for i in range(4)]
    assert events.Tags()["images"] == images
    assert [e.step for e in events.Images(images[0])] == [2, 4]
    assert events.Images(images[0])[0].width >= 640


def test_the_export_loads_in_a_bare_transformers_script(finished: Path, tiny_model: str) -> None:
    """No missing or unexpected keys, weights that have moved, and the base processor unchanged."""
    script = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
export, base = sys.argv[1:]
model, info = AutoModelForImageTextToText.from_pretrained(export, output_loading_info=True)
assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
old = AutoModelForImageTextToText.from_pretrained(base).state_dict()
assert any(not torch.equal(v, old[k]) for k, v in model.state_dict().items())
processor = AutoProcessor.from_pretrained(export)
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what ?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
metadata = {"total_num_frames": 4, "fps": 4.0, "frames_indices": [0, 1, 2, 3]}
video = torch.zeros(4, 3, 48, 48, dtype=torch.uint8)
inputs = processor(text=[text], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]
assert "orlaif" not in sys.modules
"""
    arguments = [sys.executable, "-c", script, str(finished / "export"), tiny_model]
    subprocess.run(arguments, check=True, cwd=finished)
    for name in ("processor_config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        assert (finished / "export" / name).read_bytes() == (Path(tiny_model) / name).read_bytes(), name


def test_a_run_resumes_from_its_checkpoint_on_the_command_line(
    finished: Path, tmp_path: Path, tiny_model: str, data_root: str
) -> None:
    """Two steps, then two more with ``--ckpt_path``: the very weights of four at once."""
    steps = ["--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    run(small("demo_rlaif.yaml", "fit", tmp_path, tiny_model, data_root, "--trainer.max_steps=2", *steps))
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    extra = ["--trainer.max_steps=4", *steps, f"--ckpt_path={checkpoint}"]
    cli = run(small("demo_rlaif.yaml", "fit", tmp_path, tiny_model, data_root, *extra))
    assert cli.trainer.global_step == 4
    a, b = ((folder / "export" / "model.safetensors").read_bytes() for folder in (finished, tmp_path))
    assert a == b


def test_validate_test_and_predict(finished: Path, tmp_path: Path, data_root: str) -> None:
    export = str(finished / "export")
    for subcommand in ("validate", "test", "predict"):
        run(small("demo_rlaif.yaml", subcommand, tmp_path, export, data_root))
    tested = [json.loads(line) for line in (tmp_path / "predictions" / "test.jsonl").read_text().splitlines()]
    predicted = [json.loads(line) for line in (tmp_path / "predictions" / "predict.jsonl").read_text().splitlines()]
    assert [r["id"] for r in tested] == [f"test-{i:05d}" for i in range(20)]
    assert [r["prediction"] for r in tested] == [r["prediction"] for r in predicted]
    assert all(r["correct"] == (r["prediction"] == r["answer"]) for r in tested)


def failing(*arguments: str) -> str:
    """Standard error of a command line that must fail."""
    done = subprocess.run(
        [sys.executable, "-m", "orlaif.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ORLAIF_TRACEBACK": ""},
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.init_args.learning_rate=1"], "learning_rate"),
        (["--model.init_args.rollout.init_args.group_size=1"], "rollout.group_size is 1"),
        (["--model.init_args.oracle=orlaif.oracles.NoSuchOracle"], "NoSuchOracle"),
        ([f"{POLICY}=outputs/nowhere/at/all"], "outputs/nowhere/at/all"),
        (["--model.init_args.policy.init_args.dtype=float12"], "float12"),
    ],
    ids=["misspelt-key", "group-of-one", "unknown-oracle", "no-checkpoint", "dtype"],
)
def test_a_mistake_in_a_recipe_is_one_clear_line(
    extra: list[str], message: str, tmp_path: Path, tiny_model: str, data_root: str
) -> None:
    assert message in failing(*small("demo_rlaif.yaml", "fit", tmp_path, tiny_model, data_root), *extra)


def test_a_broken_data_file_and_a_bad_video_stop_the_run_by_name(
    tmp_path: Path, tiny_model: str, data_root: str
) -> None:
    def fit(rows: list[dict]) -> str:
        index = tmp_path / "rows.jsonl"
        index.write_text("".join(json.dumps(row) + "\n" for row in rows))
        train = json.dumps({"class_path": "orlaif.data.datasets.JsonlDataset", "init_args": {"path": str(index)}})
        arguments = small("demo_rlaif.yaml", "fit", tmp_path, tiny_model, data_root)
        return failing(*arguments, f"--data.init_args.train={train}")

    row = {"id": "0", "video": "no.mp4", "question": "what ?", "answer": "red"}
    assert "rows.jsonl, line 1: field 'question' is ''" in fit([{**row, "question": ""}])
    assert f"{tmp_path}/no.mp4: no such file" in fit([{**row, "id": str(i)} for i in range(8)])
