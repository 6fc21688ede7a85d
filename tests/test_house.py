"""The rooms of the package: names that stay within a module, and files of one idea.

Which room may import which is said by import-linter's contracts in ``pyproject.toml`` (``make check``).
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import REPO

FILES = sorted([*(REPO / "orlaif").rglob("*.py"), *(REPO / "kernels" / "orlaif_kernels").rglob("*.py")])
#: A longer file says why in its first paragraph, by these words.
LIMIT, REASON = 300, "Longer than 300 lines because"


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def borrowed(tree: ast.Module) -> Iterator[str]:
    """Private names of other modules of orlaif that a module uses."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orlaif"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names if private(alias.name))
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.startswith("orlaif")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node.value) in modules:
            yield f"{ast.unparse(node.value)}.{node.attr}"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from orlaif.rollout.local import _choose", ["orlaif.rollout.local._choose"]),
        ("from orlaif.policy import lora as adapters\nadapters._x()", ["adapters._x"]),
        ("import orlaif.policy.hub\norlaif.policy.hub._copy('a')", ["orlaif.policy.hub._copy"]),
        ("from orlaif.policy import hub\nhub.copy('a')\nself._x = hub.__name__", []),
        ("from torch.utils import _pytree\n_pytree.x", []),
    ],
)
def test_the_search_for_private_names(source: str, names: list[str]) -> None:
    assert list(borrowed(ast.parse(source))) == names


def test_no_private_name_is_used_by_another_module() -> None:
    used = {str(file.relative_to(REPO)): list(borrowed(ast.parse(file.read_text()))) for file in FILES}
    assert {file: names for file, names in used.items() if names} == {}


def test_files_are_short_or_say_why_not() -> None:
    long: list[str] = []
    for file in sorted((REPO / "orlaif").rglob("*.py")):
        text = file.read_text()
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        if len(text.splitlines()) > LIMIT and REASON not in " ".join(first.split()):
            long.append(str(file.relative_to(REPO / "orlaif")))
    assert long == []


def test_the_contracts_of_the_imports_hold() -> None:
    """As ``make check`` has it; in a process of its own, for import-linter sets up logging that other tests look at."""
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(
        [*command, "--no-cache"],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "kernels")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
