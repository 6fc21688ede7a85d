"""Each commit that a result names can be checked out of a clone, or its JSON says why not."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.figures.results import RESULTS
from tests.conftest import REPO

#: Names of what says a commit.
NAMING = ("commit", "before", "planned_at")


def git(*words: str, folder: Path = REPO) -> str:
    ran = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def named(value: object) -> set[str]:
    """What a JSON says of commits, wherever it stands, less the mark of a changed tree."""
    if isinstance(value, list):
        return set().union(*map(named, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    own = {str(value[key]).removesuffix("+changes") for key in NAMING if isinstance(value.get(key), str)}
    return own.union(*map(named, value.values()))


@pytest.fixture(scope="module")
def history() -> list[str]:
    try:
        shallow = git("rev-parse", "--is-shallow-repository")
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no git, or no checkout: there is no history to look in")
    if shallow == "true":
        pytest.skip("a shallow clone has no history to look in")
    return git("rev-list", "HEAD").splitlines()


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_the_commits_of_a_result_are_ancestors(path: Path, history: list[str]) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    lost = [one for one in named(report) if not any(known.startswith(one) for known in history)]
    assert not lost or report.get("commit_note"), f"{lost}: not in HEAD's history; `commit_note` is to say why"


def test_commits_are_found_wherever_they_stand() -> None:
    report = {"commit": "aaaaaaa", "runs": {"x": [{"commit": "bbbbbbb+changes"}]}, "before": "ccccccc", "other": ["d"]}
    assert named(report) == {"aaaaaaa", "bbbbbbb", "ccccccc"}


def test_a_changed_tree_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORLAIF_COMMIT", raising=False)
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    assert harness.commit() == "unknown"
    git("init", "--quiet", folder=tmp_path)
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py", folder=tmp_path)
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    git(*who, "commit", "--quiet", "--no-gpg-sign", "--message=first", folder=tmp_path)
    clean = harness.commit()
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    (tmp_path / "results.json").write_text("{}")  # a result that is not known to git is no change of the code
    assert harness.commit() == clean
    (tmp_path / "a.py").write_text("2\n")
    assert harness.commit() == f"{clean}+changes"
