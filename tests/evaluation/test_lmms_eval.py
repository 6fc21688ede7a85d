"""The tasks that are shipped for lmms-eval: what they name is there, and does what it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

from tests.conftest import REPO

FOLDER = REPO / "recipes" / "lmms_eval"


@pytest.fixture
def utils() -> Any:
    spec = importlib.util.spec_from_file_location("lmms_utils", FOLDER / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(path: Path) -> dict[str, Any]:
    """A task's configuration, functions by their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: f"!{node.value}")
    return yaml.load(path.read_text(), Loader)


@pytest.mark.parametrize("name", ["msvd", "msrvtt"])
def test_a_task_runs_on_files_of_the_published_form(
    name: str, utils: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = functions(FOLDER / f"{name}_qa.yaml")
    shared = functions(FOLDER / task["include"])
    named = [value for part in (task, shared) for value in part.values() if str(value).startswith("!utils.")]
    assert len(named) == 5
    called = {value: getattr(utils, value.removeprefix("!utils.")) for value in named}
    folder = tmp_path / "data" / name
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "vid1.avi").touch()
    (folder / "test_a.json").write_text(json.dumps([{"question_id": 7, "answer": "dog"}]))
    monkeypatch.chdir(tmp_path)
    assert task["dataset_kwargs"]["data_files"]["test"] == f"data/{name}/test_q.json"
    rows = Dataset.from_list([{"video_name": "vid1", "question": "who runs?", "question_id": 7}])
    (row,) = called[task["process_docs"]](rows)
    assert called[task["doc_to_visual"]](row) == [f"data/{name}/videos/vid1.avi"]
    wording = shared["lmms_eval_specific_kwargs"]["default"]
    assert called[shared["doc_to_text"]](row, wording) == "who runs? Answer with a single word or a short phrase."
    assert called[shared["doc_to_target"]](row) == "dog"
    assert called[shared["process_results"]](row, ["A dog."]) == {"exact_match": 1.0, "token_f1": 1.0}
    assert {metric["metric"] for metric in shared["metric_list"]} == {"exact_match", "token_f1"}
    stranger = Dataset.from_list([{"video_name": "none", "question": "q", "question_id": 8}])
    with pytest.raises(SystemExit, match=r"no answer to 1 questions, such as 8"):
        called[task["process_docs"]](stranger)
    with pytest.raises(SystemExit, match="no such video"):
        called[task["doc_to_visual"]]({"video_name": "none"})
