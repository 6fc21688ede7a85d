"""The page in a real browser: every view, filters, two runs, a video that plays, hostile texts, many groups."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orlaif.media import VideoClip
from orlaif.samples.frames import FrameStore
from orlaif.view.export import one_file
from orlaif.view.run import Run
from tests.view.browsing import IN_A_BROWSER, ready, served, until
from tests.view.runs import answer, group, run

HOSTILE = "<img src=x onerror='document.title=1'><script>document.title='run'</script>\u202eright \x1b[31m to left"
pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_videos: Path) -> list[Run]:
    """Two runs of 120 groups on 40 prompts; of the second, the answers are better."""
    clip = {"path": str(shared_videos / "nasa_13013.mp4"), "times_s": [1.0, 1.4, 1.8]}
    told = {"exchanges": [{"asked": "A: red\nB: " + HOSTILE, "replied": '{"ranking": ["A", "B"]}'}]}
    folders = []
    for name, word in (("first", "blue"), ("second", "red")):
        groups = [
            group(
                i // 4,
                f"p{i % 40}",
                answer(f"{word} it is {i}", 0),
                answer(HOSTILE if i == 5 else "green", 1),
                seen=[clip],
                **(told if i == 5 else {}),
            )
            for i in range(120)
        ]
        groups[7] = group(1, "p7", answer("same", 0), answer("alike", 0), seen=[clip])
        folders.append(run(tmp_path_factory.mktemp("runs") / name, groups))
    return [Run(folder) for folder in folders]


@pytest.fixture(scope="module")
def address(runs: list[Run]) -> Iterator[str]:
    yield from served(runs)


def test_a_group_with_its_video_frames_and_the_other_run(page: Any, address: str) -> None:
    ready(page, address).locator(".row").nth(2).click()
    page.wait_for_selector(".answer")
    until(page, "document.querySelector('video').readyState >= 2")
    page.evaluate("document.querySelector('video').play()")
    until(page, "document.querySelector('video').currentTime > 1.05")
    until(page, "document.querySelectorAll('.frames figure').length === 3")
    assert page.locator(".frames figure").all_inner_texts() == ["1.00 s", "1.40 s", "1.80 s"]
    answers = page.locator(".answer .text").all_inner_texts()
    assert [one.replace(" ", "") for one in answers] == ["blueitis2", "green", "reditis2", "green"]
    assert page.locator(".answer p").first.inner_text().startswith("rank 0")
    assert "null" not in page.locator("#group").inner_text()
    assert "second, step 0" in page.locator("#group h2").all_inner_texts()
    assert page.locator(".token").first.get_attribute("title") == "log-prob -0.500"


def test_frames_that_were_kept_are_cut_out_of_their_sheet(page: Any, tmp_path: Path) -> None:
    """Of a clip that no file has: on the page, and in the exported file."""
    colors = torch.tensor([[255, 0, 0], [0, 200, 0], [0, 0, 255]] * 4, dtype=torch.uint8)
    frames = colors[:, :, None, None].expand(-1, -1, 90, 120).contiguous()
    clip = VideoClip(frames=frames, pts_s=torch.arange(12.0, dtype=torch.float64), duration_s=12.0, path="made")
    store = FrameStore(tmp_path / "one" / "samples" / "frames", 10**6)
    seen = [{"path": "made", "times_s": clip.pts_s.tolist(), "sheet": store.keep("p", clip)}]
    store.close()
    one = Run(run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1), seen=seen)]))
    (tmp_path / "page.html").write_text(one_file([one], most=5), encoding="utf-8")
    for address in served([one]):
        for place in (address, (tmp_path / "page.html").as_uri()):
            ready(page, place).locator(".row").first.click()
            until(page, "document.querySelectorAll('.frames figure').length === 12")
            shown = page.locator(".frame")
            for i, hue in ((0, 0), (1, 1), (9, 0), (11, 2)):  # the tenth and twelfth are in the second row
                shown.nth(i).scroll_into_view_if_needed()
                picture = Image.open(io.BytesIO(shown.nth(i).screenshot())).convert("RGB")
                middle = picture.getpixel((picture.width // 2, picture.height // 2))
                assert middle.index(max(middle)) == hue
            assert page.locator(".frames figure").last.inner_text() == "11.00 s"


def test_the_prompt_over_time_and_every_view_has_a_link(page: Any, address: str) -> None:
    ready(page, address).locator(".row").first.click()
    page.locator(".others button", has_text="step 20").click()
    until(page, "document.querySelector('#group p.quiet').textContent.startsWith('step 20')")
    link = page.url
    page.goto("about:blank")
    ready(page, link)
    page.wait_for_selector(".answer")
    assert page.locator("#group p.quiet").first.inner_text().startswith("step 20")
    assert page.locator(".row.picked").is_visible()


def test_filters_and_sorting(page: Any, address: str) -> None:
    count = ready(page, address).locator("#count")
    assert count.inner_text() == "120 of 120 groups"
    page.select_option("#only", "tied")
    assert count.inner_text() == "1 of 120 groups"
    page.select_option("#only", "")
    page.fill("#text", "IT IS 11")
    assert count.inner_text() == "11 of 120 groups"  # 11, 110 to 119
    page.fill("#text", "")
    page.select_option("#sort", "-step")
    assert page.locator(".row").first.inner_text().startswith("step 29")
    page.select_option("#run", "1")
    until(page, "document.querySelector('.row').textContent.includes('red it is')")


def test_by_keyboard(page: Any, address: str) -> None:
    ready(page, address).locator("#rows").focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("k")
    page.wait_for_selector(".answer")
    assert "group=1" in page.url
    page.keyboard.press("End")
    until(page, "location.hash.includes('group=119')")
    assert page.locator(".row.picked").is_visible()


def test_hostile_texts_are_texts(page: Any, address: str) -> None:
    ready(page, address + "#group=5")
    page.wait_for_selector(".answer")
    said = page.locator("#group").inner_text()
    assert (
        said.count("<script>document.title='run'</script>") == 3
    )  # an answer of both runs, and what the judge was asked
    assert page.title() == "orlaif view"
    assert page.locator("#group script, #group img[onerror]").count() == 0


def test_texts_turn_nothing_round_and_stretch_nothing(page: Any, tmp_path: Path) -> None:
    """Marks that turn text round are shown by name; a long category and a tiny video keep to sensible sizes."""
    turned = group(0, "p", answer("a \u202eb \x1b", 0), answer("c", 1), reference="\u2067right")
    turned["prompt"] |= {"question": "what \u202eis it", "category": "c" * 300}
    for address in served([Run(run(tmp_path / "one", [turned]))]):
        row = ready(page, address).locator(".row").first
        assert "what [U+202E]is it → a [U+202E]b \u241b" in row.inner_text()
        assert row.locator("bdi").all_inner_texts() == ["p", "what [U+202E]is it", "a [U+202E]b \u241b"]
        row.click()
        page.wait_for_selector(".answer")
        assert page.locator(".answer .text").first.inner_text() == "a[U+202E]b\u241b"
        said = page.locator("#group > p.quiet").first
        assert "reference: [U+2067]right; rollout" in said.inner_text()
        assert not set("\u202e\u2067\x1b") & set(page.locator("body").inner_text())
        assert page.locator("#task").bounding_box()["width"] < 200
        page.select_option("#task", index=1)
        assert page.locator("#count").inner_text() == "1 of 1 groups"
        size = page.evaluate("""() => {
            const video = document.createElement('video');
            Object.assign(video.style, { width: '48px', height: '48px' });
            document.getElementById('group').append(video);
            return [video.getBoundingClientRect().width, video.getBoundingClientRect().height];
        }""")
        assert size == [320, 180]


def test_a_curve_of_one_point_is_a_dot_and_bounds_are_a_band(page: Any, tmp_path: Path) -> None:
    """On the page and in the exported file."""
    one = Run(run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1))]))
    bounds = {"val/win_rate/low": [[0.0, 0.4], [9.0, 0.6]], "val/win_rate/high": [[0.0, 0.6], [9.0, 0.9]]}
    one.overview["curves"] = {"val/win_rate": [[0.0, 0.5], [9.0, 0.7]], **bounds, "val/accuracy": [[4.0, 0.25]]}
    (tmp_path / "page.html").write_text(one_file([one], most=5), encoding="utf-8")
    for address in served([one]):
        for place in (address, (tmp_path / "page.html").as_uri()):
            curves = ready(page, place).locator(".curve")
            assert curves.locator("figcaption span").all_inner_texts() == ["val/win_rate", "val/accuracy"]
            assert curves.first.locator("b").inner_text() == "0.700 (0.60\u20130.90)"
            said = curves.first.locator("figcaption").get_attribute("title")
            assert said == "val/win_rate, 0.400 to 0.900; last 0.700 (0.60\u20130.90)"
            assert curves.first.locator("polygon").bounding_box()["height"] > 60
            dot = curves.last.locator("circle").bounding_box()
            assert dot["width"] >= 5
            assert curves.last.locator("polyline").count() == 0


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_in_the_dark_and_on_a_phone(browser: Any, address: str, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    opened = ready(context.new_page(), address)
    opened.locator(".row").first.click()
    opened.wait_for_selector(".answer")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    context.close()


def test_one_file_without_a_server(page: Any, runs: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(one_file(runs, most=60), encoding="utf-8")
    ready(page, path.as_uri()).locator(".row").nth(1).click()
    page.wait_for_selector(".answer")
    assert page.locator(".answer").count() == 4
    assert page.locator("video").count() == 0


def test_a_run_that_is_deleted_while_it_is_viewed_and_one_that_is_empty(page: Any, tmp_path: Path) -> None:
    gone = run(tmp_path / "gone", [group(i, f"p{i}", answer("a", 0), answer("b", 1)) for i in range(3)])
    stays = run(tmp_path / "stays", [group(i, f"q{i}", answer("a", 0), answer("b", 1)) for i in range(2)])
    for address in served([Run(gone), Run(stays)]):
        ready(page, address)
        shutil.rmtree(gone)
        page.locator("#refresh").click()
        until(page, "document.getElementById('count').textContent === '0 of 0 groups'")
        page.locator("#rows").focus()
        page.keyboard.press("End")
        page.select_option("#run", "1")
        assert page.locator("#count").inner_text() == "2 of 2 groups"
        page.locator(".row").first.click()  # of other prompts than the first run had
        page.wait_for_selector(".answer")
        assert page.locator(".answer").count() == 2
        assert page.locator("video").count() == 0


def test_ten_thousand_groups(page: Any, tmp_path: Path) -> None:
    """All are listed, only those in view are in the page, and the end is a key away."""
    many = run(tmp_path / "many", [group(i, f"p{i}", answer(f"a {i}", 0), answer("b", 1)) for i in range(10_000)])
    for address in served([Run(many)]):
        ready(page, address)
        assert page.locator("#count").inner_text() == "10000 of 10000 groups"
        assert page.locator(".row").count() < 60
        page.locator("#rows").focus()
        page.keyboard.press("End")
        until(page, "location.hash.includes('group=9999')")
        assert "a 9999" in page.locator(".row.picked").inner_text()
