"""The evaluation recipes from end to end: files of the published form, a tiny model, a judge behind HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orlaif.cli.recipe import run
from orlaif.demo.shapes import ShapesDataset
from tests.cli.test_cli import POLICY
from tests.conftest import REPO
from tests.data.test_formats import MME, written
from tests.oracles.server import ChatServer

DATA = "--data.init_args.test.init_args"
JUDGE = "--model.init_args.suite.init_args.judge.init_args.client.init_args"


def results_of(name: str, run_dir: Path, model: str, *extra: str, sampling: Sequence[str] = ()) -> dict[str, Any]:
    """The results of `orlaif test` with a recipe of recipes/evaluation, on a CPU and with 4 frames."""
    recipe = str(REPO / "recipes" / "evaluation" / f"{name}.yaml")
    small = [*sampling, "--data.init_args.sampling.init_args.num_frames=4", "--model.init_args.eval_max_new_tokens=4"]
    small += ["--data.init_args.budget=null", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    policy = [f"{POLICY}={model}", "--model.init_args.policy.init_args.dtype=float32"]
    run(["test", "--config", recipe, f"--run_dir={run_dir}", *policy, *small, *extra])
    return json.loads((run_dir / "results.json").read_text())


@pytest.fixture
def videos(tmp_path: Path, shapes: ShapesDataset) -> Path:
    """v0.mp4 to v5.mp4."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(6):
        shutil.copy(shapes[i].video, folder / f"v{i}.mp4")
    return folder


def test_video_mme(tmp_path: Path, videos: Path, tiny_model: str) -> None:
    rows = [
        {**MME, "videoID": f"v{i}", "question_id": f"{i}-1", "duration": ("short", "medium", "long")[i % 3]}
        for i in range(6)
    ]
    path = written(tmp_path, *rows, name="test.parquet")
    results = results_of(
        "video_mme", tmp_path / "run", tiny_model, f"{DATA}.path={path}", f"{DATA}.video_root={videos}"
    )
    assert {"accuracy", "unreadable_rate", "accuracy/short"} <= set(results["metrics"])
    assert [table["title"].removeprefix("Video-MME by ") for table in results["tables"]] == [
        "duration",
        "task type",
        "domain",
        "sub-category",
    ]
    page = (tmp_path / "run" / "results.md").read_text()
    assert "| OCR Problems | 6 |" in page
    assert (results["about"]["asked"], results["about"]["answered"]) == (6, 6)


@pytest.mark.parametrize("name", ["msvd_qa", "msrvtt_qa", "activitynet_qa"])
def test_open_ended(name: str, tmp_path: Path, videos: Path, tiny_model: str) -> None:
    if name == "activitynet_qa":
        for path in videos.iterdir():
            path.rename(path.with_name(f"v_{path.name}"))
    questions = [{"video_name": f"v{i}", "question": "what is it", "question_id": f"q{i}"} for i in range(6)]
    answers = [{"answer": "dog", "type": i, "question_id": f"q{i}"} for i in range(6)]
    files = [f"{DATA}.path={written(tmp_path, *questions, name='test_q.json')}"]
    files += [f"{DATA}.answers={written(tmp_path, *answers, name='test_a.json')}", f"{DATA}.video_root={videos}"]
    with ChatServer(lambda request: '{"pred": "yes", "score": 4}') as server:
        judge = [f"{JUDGE}.base_url={server.url}", f"{JUDGE}.cache_dir={tmp_path / 'cache'}"]
        results = results_of(name, tmp_path / "run", tiny_model, *files, *judge)
        again = results_of(name, tmp_path / "run", tiny_model, *files, *judge)
        assert len(server.requests) == len({json.dumps(request) for request in server.requests})
    assert results["metrics"]["judged_accuracy"] == 1.0
    assert results["metrics"]["judged_score"] == 4.0
    assert again["metrics"] == results["metrics"]
    assert results["about"]["judge"]["model"] == "Qwen/Qwen3-8B"
    page = (tmp_path / "run" / "results.md").read_text()
    assert ("| yes/no | 1 |" in page) == (name == "activitynet_qa")


def test_video_chatgpt(tmp_path: Path, videos: Path, tiny_model: str) -> None:
    one = [{"video_name": f"v{i}", "Q": "What?", "A": "a dog"} for i in range(2)]
    pairs = [{"video_name": "v2", "Q1": "One?", "Q2": "Two?", "A": "a dog"}]
    files = [
        f"{DATA}.{name}={written(tmp_path, *rows, name=f'{name}.json')}"
        for name, rows in (("generic", one), ("temporal", one), ("consistency", pairs))
    ]
    with ChatServer(lambda request: '{"score": 3}') as server:
        judge = [f"{JUDGE}.base_url={server.url}", f"{JUDGE}.cache_dir={tmp_path / 'cache'}"]
        results = results_of(
            "video_chatgpt", tmp_path / "run", tiny_model, *files, f"{DATA}.video_root={videos}", *judge
        )
    assert results["metrics"]["score"] == 3.0
    assert results["metrics"]["consistency"] == 3.0
    assert results["about"]["answered"] == 2 + 2 + 2
