"""The command line as a user meets it: whole runs, and mistakes that end before any long work starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orlaif.cli.recipe import run
from orlaif.evaluation.loop import Evaluated
from tests.conftest import REPO
from tests.forked import orlaif

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
    results = json.loads((tmp_path / "results.json").read_text())
    right = sum(r["prediction"] == r["answer"] for r in tested)
    assert results["metrics"]["accuracy"] == pytest.approx(right / 20)


def failing(*arguments: str) -> str:
    """Standard error of a command line that must fail."""
    done = orlaif(arguments, ORLAIF_TRACEBACK="")
    _, errors = done.communicate()
    assert done.returncode != 0
    assert "Traceback" not in errors, errors
    return errors


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


# ---------------------------------------------------------------------------------------------- evaluation and its data


def shapes_test(finished: Path, run_dir: Path, data_root: str, *extra: str) -> list[str]:
    return small("demo_rlaif.yaml", "test", run_dir, str(finished / "export"), data_root, *extra)


def test_a_test_goes_on_where_it_stopped(
    finished: Path, tmp_path: Path, data_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven answers are there, and half a line; thirteen are asked, and the results are the same."""
    answered: list[int] = []
    real = Evaluated.answer
    monkeypatch.setattr(Evaluated, "answer", lambda self, batch: answered.append(len(batch)) or real(self, batch))
    run(shapes_test(finished, tmp_path, data_root))
    predictions = tmp_path / "predictions" / "test.jsonl"
    whole, results = predictions.read_text(), (tmp_path / "results.json").read_text()
    assert sum(answered) == 20
    lines = whole.splitlines(keepends=True)
    predictions.write_text("".join(lines[:7]) + lines[7][:30])
    (tmp_path / "results.json").unlink()
    answered.clear()
    run(shapes_test(finished, tmp_path, data_root))
    assert sum(answered) == 13
    assert sorted(predictions.read_text().splitlines()) == sorted(whole.splitlines())
    assert (tmp_path / "results.json").read_text() == results
    answered.clear()
    run(shapes_test(finished, tmp_path, data_root))  # all is there: graded again, nothing asked
    assert answered == []  # an empty batch asks nothing
    assert (tmp_path / "results.json").read_text() == results


def test_bad_videos_of_a_test_are_listed_with_its_results(finished: Path, tmp_path: Path, data_root: str) -> None:
    good = next(Path(data_root).glob("*/test-20.jsonl"))
    rows = [json.loads(line) for line in good.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["video"] = str(tmp_path / "none.mp4" if i == 3 else good.parent / row["video"])
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = json.dumps({"class_path": "orlaif.data.datasets.JsonlDataset", "init_args": {"path": str(path)}})
    skip = [
        f"--data.init_args.test={dataset}",
        "--data.init_args.on_bad_video=skip",
        "--data.init_args.max_bad_rate=0.5",
    ]
    for _ in range(2):  # and again, where all but the bad one is answered
        run(shapes_test(finished, tmp_path, data_root, *skip))
        about = json.loads((tmp_path / "results.json").read_text())["about"]
        assert (about["asked"], about["answered"]) == (20, 19)
        assert about["skipped"] == [{"video": str(tmp_path / "none.mp4"), "cause": "no such file"}]


def test_predictions_of_another_model_are_not_mixed_in(
    finished: Path, tmp_path: Path, data_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(shapes_test(finished, tmp_path, data_root))
    with caplog.at_level("INFO", logger="orlaif"):
        run(shapes_test(finished, tmp_path, data_root, "--model.init_args.eval_max_new_tokens=2"))
    assert "predictions were made with another max_new_tokens; starting anew" in caplog.text
    assert len((tmp_path / "predictions" / "test.jsonl").read_text().splitlines()) == 20


def test_two_tests_are_compared_on_the_command_line(
    finished: Path, tmp_path: Path, tiny_model: str, data_root: str
) -> None:
    run(shapes_test(finished, tmp_path / "b", data_root))
    run(small("demo_rlaif.yaml", "test", tmp_path / "a", tiny_model, data_root))
    done = orlaif(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    printed, errors = done.communicate()
    assert done.returncode == 0, errors
    assert "| exact_match % | n | a | b | difference (95 % interval) |" in printed
    assert (tmp_path / "b" / "comparison" / "comparison.png").exists()


def checked(*arguments: str) -> tuple[int, str]:
    done = orlaif(["check-data", "--config", str(REPO / "recipes" / "demo_rlaif.yaml"), *arguments])
    said = "".join(done.communicate())
    assert done.returncode is not None
    return done.returncode, said


def test_good_data_is_counted(data_root: str) -> None:
    sizes = [
        f"--data.init_args.{split}.init_args.{key}={value}"
        for split, size in SIZES.items()
        for key, value in (("root", data_root), ("size", size))
    ]
    code, output = checked("--sample", "5", *sizes)
    assert code == 0, output
    assert "train: 64 questions about 64 videos, 64 with an answer; 0 broken rows; 5 clips decoded, 0 bad" in output
    assert "\nno problems\n" in output


def test_everything_wrong_with_the_data_is_listed(tmp_path: Path, data_root: str) -> None:
    good = next(Path(data_root).glob("*/train-64.jsonl"))
    rows = [json.loads(line) for line in good.read_text().splitlines()[:6]]
    for row in rows:
        row["video"] = str(good.parent / row["video"])
    (tmp_path / "empty.mp4").touch()
    rows[1]["video"] = str(tmp_path / "empty.mp4")
    rows[2]["video"] = str(tmp_path / "none.mp4")
    del rows[3]["question"]
    rows[4]["id"] = rows[0]["id"]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": \n')
    dataset = json.dumps({"class_path": "orlaif.data.datasets.JsonlDataset", "init_args": {"path": str(path)}})
    none = ["--data.init_args.val=null", "--data.init_args.test=null"]
    code, output = checked("--sample=all", f"--data.init_args.train={dataset}", *none)
    assert code == 1
    assert "train: 4 questions about 4 videos, 4 with an answer; 3 broken rows; 4 clips decoded, 2 bad" in output
    assert f"{path}, line 4: field 'question' is missing" in output
    assert f"{path}, line 5: id 'train-00000' was used before, on line 1" in output
    assert f"{path}, line 7: not valid JSON" in output
    assert "empty.mp4: the file is empty" in output
    assert "none.mp4: no such file" in output
    assert "\n5 problems\n" in output
    code, output = checked("--sample=many")
    assert code == 1
    assert "--sample is 'many'; it must be a number, or 'all'" in output


def test_what_the_run_would_miss_is_listed(tmp_path: Path, data_root: str, tiny_model: str) -> None:
    """Answers that the oracle needs, an answer that is no option, a special token, and a prompt beyond the context."""
    good = next(Path(data_root).glob("*/train-64.jsonl"))
    rows = [json.loads(line) for line in good.read_text().splitlines()[:6]]
    for row in rows:
        row["video"] = str(good.parent / row["video"])
    del rows[0]["answer"]
    rows[1]["answer"] = "a violin"
    rows[2]["question"] = "what is <|video_pad|> ?"
    rows[3]["question"] = "what color " * 1100
    rows[4]["end_s"] = 200.0
    rows[4]["options"] = [rows[4]["answer"]] * 2
    rows[5]["frames"] = [str(tmp_path / f"{i}.png") for i in range(2)]
    for frame in rows[5]["frames"]:
        Image.new("RGB", (2000, 4)).save(frame)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = json.dumps({"class_path": "orlaif.data.datasets.JsonlDataset", "init_args": {"path": str(path)}})
    none = ["--data.init_args.val=null", "--data.init_args.test=null"]
    model = f"--model.init_args.policy.init_args.path={tiny_model}"
    code, output = checked("--sample=all", f"--data.init_args.train={dataset}", model, *none)
    assert code == 1
    assert f"{path}, line 1: the prompt has no reference answer, which ReferenceAnswerOracle needs" in output
    assert f"{rows[4]['video']}: segment ends at 200 s, the video at 2 s" in output
    assert f"{rows[5]['video']}: the model's processor does not take 2 frames of 2000 x 4 (" in output
    assert "5 clips decoded, 1 bad" in output
    assert f"{path}, line 2: field 'answer' is 'a violin', which names none of its 'options'" in output
    assert f"{path}, line 3: field 'question' spells '<|video_pad|>'" in output
    assert f"{path}, line 4: prompts longer than the context: 'train-00003'" in output
    assert f"{path}, line 5: field 'options' has {rows[4]['answer']!r} twice" in output
    assert "\n7 problems\n" in output
