"""Each table of README and docs says what its JSON does, and so does each sentence that is listed with its figures."""

from __future__ import annotations

import json

import pytest

from benchmarks.figures.claims import CLAIMS, Claim, missing
from benchmarks.figures.pages import PAGES, names, rendered
from benchmarks.figures.results import RESULTS
from benchmarks.figures.tables import TABLES
from tests.conftest import REPO


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_tables_are_those_of_the_results(page) -> None:
    text = page.read_text(encoding="utf-8")
    assert rendered(text) == text, "`make figures` writes it anew"


def test_every_table_stands_in_a_page() -> None:
    shown = [name for page in PAGES for name in names(page.read_text(encoding="utf-8"))]
    assert sorted(shown) == sorted(TABLES)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.words[:40])
def test_sentences_say_what_the_results_do(claim: Claim) -> None:
    assert not missing(claim)


def test_a_wrong_figure_is_found(tmp_path, monkeypatch) -> None:
    text = "<!-- figures: demo -->\n| all | 99.9 % |\n<!-- end of figures -->"
    assert rendered(text) != text
    assert "| all | 58.4 % |" in rendered(text)
    assert missing(Claim("README.md", "{:.1f} to {:.0f} x less time than the duplicated batch", lambda: (5.0, 20.0)))
    with pytest.raises(ValueError, match="figures: accuracy is no table"):
        rendered(text.replace("demo", "accuracy"))


def test_every_result_names_its_commit() -> None:
    for path in RESULTS.glob("*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert "commit" in (report.get("about") or report) or "commit" in report.get("machine", ""), path.name
