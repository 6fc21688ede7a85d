"""The pictures of the docs, taken of the page in a real browser: ``ORLAIF_SCREENSHOTS=docs/images make browser-test``.

Without that variable they are taken all the same, and thrown away, so that a view that can no longer be had fails here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlaif.view.run import Run
from tests.conftest import REPO
from tests.view.believable import believable
from tests.view.browsing import IN_A_BROWSER, ready, served, until

pytestmark = IN_A_BROWSER
#: Bytes of a picture, at most.
MOST = 150_000
COLOURS = 200
#: A group of many different answers in the midst of the first run.
GROUP = 98
#: One in which the judge ranks the reference answer last.
OVERRULED = 97


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, shared_videos: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("outputs")
    names = {"qwen3_vl_2b_judge_8b": (1, True), "qwen3_vl_2b_rubrics": (2, False)}
    runs = [Run(believable(folder / name, shared_videos, *how)) for name, how in names.items()]
    yield from served(runs)


def shot(page: Any, name: str, tmp_path: Path, part: str | None = None) -> None:
    """A PNG of the page, or of a part, in few colours."""
    from PIL import Image

    data = page.locator(part).screenshot() if part else page.screenshot()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    path = Path(os.environ.get("ORLAIF_SCREENSHOTS") or tmp_path) / f"{name}.png"
    image.quantize(COLOURS, kmeans=1, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < MOST
    assert len(image.getcolors(2**24) or ()) > 20, "the picture is blank"


def opened(page: Any, address: str, group: int, run: int = 0) -> Any:
    """The page with a group open, its video at its first frame."""
    ready(page, f"{address}#run={run}&group={group}")
    page.wait_for_selector(".answer")
    until(page, "document.querySelector('video').readyState >= 3 && !document.querySelector('video').seeking")
    until(page, "document.querySelectorAll('.frames .frame').length === 8")
    return page


def test_signs_of_trouble_and_curves(page: Any, address: str, tmp_path: Path) -> None:
    ready(page, address)
    troubles = [one.split(":")[0] for one in page.locator(".sign.trouble strong").all_inner_texts()]
    assert troubles == ["reference answers overruled", "rank follows length"]
    assert page.locator(".curve").count() == 10
    shot(page, "view_signs", tmp_path, "#signs")
    shot(page, "view_curves", tmp_path, "#curves")


def test_the_list_with_filters(page: Any, address: str, tmp_path: Path) -> None:
    ready(page, f"{address}#only=disagrees&sort=agrees&text=lift")
    assert "of 240 groups" in page.locator("#count").inner_text()
    shot(page, "view_list", tmp_path, "#list")


def test_a_group(page: Any, address: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 1100})
    opened(page, address, GROUP)
    shot(page, "view", tmp_path)


def test_two_runs_side_by_side(page: Any, address: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 1750})
    opened(page, address, GROUP)
    page.locator("#group h2.run1").scroll_into_view_if_needed()
    shot(page, "view_two_runs", tmp_path, "#group")


def test_what_the_judge_said(page: Any, address: str, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 1200})
    opened(page, address, OVERRULED)
    page.evaluate("document.querySelector('#group').scrollTop = 1e9")
    shot(page, "view_judge", tmp_path, "#group")


@pytest.mark.parametrize(("name", "scheme", "width"), [("view_dark", "dark", 1280), ("view_phone", "light", 390)])
def test_in_the_dark_and_on_a_phone(
    browser: Any, address: str, tmp_path: Path, name: str, scheme: str, width: int
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = opened(context.new_page(), address, GROUP)
    if width < 800:
        page.locator("#group").evaluate("(one) => one.scrollIntoView()")
    shot(page, name, tmp_path)
    context.close()


def test_the_docs_show_each_picture() -> None:
    taken = {path.name for path in (REPO / "docs" / "images").glob("view*.png")}
    shown = "".join(path.read_text() for path in (REPO / "docs").rglob("*.md"))
    assert len(taken) == 8
    assert sorted(name for name in taken if f"images/{name})" not in shown) == []
