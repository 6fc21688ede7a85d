"""The server gives the page, groups and the media that samples name; nothing else, to nobody else."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from orlaif.cli.view import main
from orlaif.view.export import one_file
from orlaif.view.run import Run
from orlaif.view.server import make_app
from tests.view.runs import answer, group, run

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\u202e\x00\x1b[31m'


@pytest.fixture
def client(tmp_path: Path, shared_videos: Path) -> TestClient:
    clip = {"path": str(shared_videos / "nasa_13013.mp4"), "times_s": [0.0, 0.2]}
    gone = {"path": str(tmp_path / "gone.mp4"), "times_s": [0.0, 1.0]}
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "a.mp4").write_bytes(b"film")
    secrets = [{"path": str(tmp_path / "secret.txt")}, {"path": f"{tmp_path}/one/../a.mp4"}]
    groups = [
        group(0, "p0", answer(HOSTILE, 0), answer("b", 1), seen=[clip, gone]),
        group(1, HOSTILE, answer("x" * 100_000, 0), answer("b", 1), seen=secrets),
    ]
    return TestClient(make_app([Run(run(tmp_path / "one", groups))]), base_url="http://127.0.0.1")


def test_the_page_and_its_data(client: TestClient) -> None:
    for path in ("/", "/page.js", "/page.css", "/api/runs", "/api/group/0/0"):
        reply = client.get(path)
        assert reply.status_code == 200
        assert "script-src 'self'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "<script>" not in reply.text
    (one,) = client.get("/api/runs").json()
    assert one["groups"]["step"] == [0, 1]
    assert client.get("/api/group/0/0").json()["answers"][0]["text"] == HOSTILE
    assert len(client.get("/api/group/0/1").json()["answers"][0]["text"]) == 100_000


def test_media_are_those_of_the_samples_alone(client: TestClient) -> None:
    whole = client.get("/media/0/0/0")
    part = client.get("/media/0/0/0", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == whole.content[10:20]
    sheet = client.get("/sheet/0/0/0")
    assert sheet.headers["content-type"] == "image/webp"
    assert client.get("/api/group/0/0").json()["seen"][0]["shown"] == [0, 1]
    film = Image.open(io.BytesIO(sheet.content))
    assert film.width / 2 / film.height == pytest.approx(480 / 270, abs=0.02)
    missing = ["/media/0/0/1", "/media/0/0/2", "/media/0/9/0", "/media/7/0/0", "/media/-1/0/0", "/sheet/0/0/2"]
    missing += [
        "/sheet/0/0/1",
        "/sheet/0/1/0",
        "/sheet/0/1/1",
        "/../pyproject.toml",
        "/%2e%2e/pyproject.toml",
        "/server.py",
        "/api/group/0/2",
    ]
    missing += ["/media/0/1/0", "/media/0/1/1"]
    for path in missing:
        assert client.get(path).status_code == 404, path


def test_only_get_and_only_by_its_own_name(client: TestClient) -> None:
    for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        for path in ("/", "/api/runs", "/media/0/0/0", "/sheet/0/0/0", "/none"):
            assert client.request(method, path).status_code == 405
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8420", "", "[evil]"):
        assert client.get("/api/runs", headers={"Host": host}).status_code == 400, host
    for host in ("127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420", "[::1]", "192.168.0.7:8420"):
        assert client.get("/api/runs", headers={"Host": host}).status_code == 200, host


def test_of_the_runs_own_files_sheets_alone(tmp_path: Path) -> None:
    """A folder that somebody sent: names that lead elsewhere, links, and files that are no pictures."""
    frames = tmp_path / "one" / "samples" / "frames"
    frames.mkdir(parents=True)
    secret = tmp_path / "secret.webp"
    secret.write_bytes(b"RIFF....WEBPsecret")
    (tmp_path / "secret.txt").write_text("secret")
    names = [f"{i:032x}.webp" for i in range(4)]
    (frames / names[0]).write_bytes(b"RIFF....WEBPkept")
    (frames / names[1]).symlink_to(secret)
    (frames / names[2]).write_bytes(b"no picture")
    (frames / "secret.webp").write_bytes(b"RIFF....WEBPsecret")
    (tmp_path / "linked.mp4").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "linked.jpg").symlink_to(secret)
    hostile = [*names[1:], "secret.webp", "../../../secret.webp", str(secret), f"{names[0]}\0", f"/{names[0]}", "", 7]
    seen: list[dict[str, Any]] = [
        {"path": "made", "times_s": [0.0, 1.0], "sheet": name} for name in [names[0], *hostile]
    ]
    paths = [
        str(tmp_path / "linked.mp4"),
        f"{tmp_path}/a\0.mp4",
        "/etc/passwd",
        "\ud800.mp4",
        "",
        None,
        7,
        "http://x/a.mp4",
    ]
    media: list[dict[str, Any]] = [{"path": path, "times_s": [0.0, 1.0]} for path in paths]
    folder = run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1), seen=[*seen, *media])])
    client = TestClient(make_app([Run(folder)]), base_url="http://127.0.0.1")
    assert client.get("/sheet/0/0/0").content == b"RIFF....WEBPkept"
    for n in range(1, len(seen) + len(media)):
        for kind in ("sheet", "media"):
            assert client.get(f"/{kind}/0/0/{n}").status_code == 404, (kind, n)
    outside = ["samples/", "%2e%2e/secret.txt", "..%2f..%2fsecret.txt", "%2fetc%2fpasswd", "//etc/passwd", "page.js%00"]
    outside += ["sheet/0/0/0%2f..", "media/0/0/%2e%2e%2f1", f"samples/frames/{names[0]}", "page.html%2f..%2fpage.py"]
    for path in outside:
        assert client.get(f"/{path}").status_code == 404, path
    assert one_file([Run(folder)], most=1).count("UklGRi4uLi5XRUJQa2VwdA") == 1  # the one sheet, in base64


def test_a_linked_folder_of_frames_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    name = f"{0:032x}.webp"
    (tmp_path / "elsewhere" / name).write_bytes(b"RIFF....WEBPsecret")
    seen = [{"path": "made", "times_s": [0.0, 1.0], "sheet": name}]
    folder = run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1), seen=seen)])
    (folder / "samples" / "frames").symlink_to(tmp_path / "elsewhere")
    assert Run(folder).sheet(0, 0) is None


def test_an_exported_page_holds_frames_up_to_a_bound(tmp_path: Path) -> None:
    """Each sheet once; signs of trouble first."""
    frames = tmp_path / "one" / "samples" / "frames"
    frames.mkdir(parents=True)
    for i in range(5):
        (frames / f"{i:032x}.webp").write_bytes(b"RIFF....WEBP" + bytes([i]) * 7500)
    groups = []
    for i in range(40):
        seen = [{"path": "made", "times_s": [0.0, 1.0], "sheet": f"{i % 5:032x}.webp"}]
        groups.append(
            group(
                i,
                f"p{i}",
                answer("same", 0 if i % 5 == 4 else i % 2),
                answer("alike", 0 if i % 5 == 4 else 1 - i % 2),
                seen=seen,
            )
        )
    told = []
    for frames_mb in (1.0, 0.025, 0.0):
        page = one_file([Run(tmp_path / "one")] if told else [Run(run(tmp_path / "one", groups))], 100, frames_mb)
        told += json.loads(page.split('id="data">')[1].split("</script>")[0])
    everything, two, none = told
    assert len(everything["sheets"]) == 5
    assert everything["sheet_of"].keys() == {f"{i}/0" for i in range(40)}
    assert len(two["sheets"]) == 2
    tied = next(sign["groups"] for sign in two["signs"] if sign["name"] == "tied groups")
    assert f"{tied[0]}/0" in two["sheet_of"]
    assert none["sheets"] == none["sheet_of"] == {}
    with pytest.raises(ValueError, match="--frames_mb is -1"):
        one_file([], most=1, frames_mb=-1)


def test_one_file_holds_texts_as_data(tmp_path: Path) -> None:
    groups = [group(i, f"p{i}", answer(HOSTILE, 0), answer(f"b {i}", 1)) for i in range(50)]
    page = one_file([Run(run(tmp_path / "one", groups))], most=10)
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    data = page.split('id="data">')[1].split("</script>")[0]
    (told,) = json.loads(data)
    assert len(told["whole"]) == len(told["groups"]["step"]) >= 10
    assert told["whole"][0]["answers"][0]["text"] == HOSTILE
    for sign in told["signs"]:
        assert all(0 <= place < len(told["whole"]) for place in sign["groups"])
    with pytest.raises(ValueError, match="--most is 0"):
        one_file([], most=0)


def test_what_a_killed_run_left_is_shown(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", [group(i, f"p{i}", answer("a", 0), answer("b", 1)) for i in range(3)])
    (shard,) = (folder / "samples").iterdir()
    shard.write_bytes(shard.read_bytes()[:-50])
    one = Run(folder)
    assert one.overview["groups"]["id"] == ["p0", "p1"]
    shard.unlink()
    assert one.group(0) is None


def test_a_run_whose_numbers_broke_down_opens(tmp_path: Path) -> None:
    """NaN is kept as null."""
    broken = answer("a b", 0, logps=[None, -1.0], trainer_logps=[None, -1.0], advantage=None, kl=None)
    (tmp_path / "one").mkdir()
    one = Run(run(tmp_path / "one", [group(0, "p0", broken, answer("b", 1))]))
    assert one.summaries[0]["agrees"] is None
    assert one.overview["groups"]["kl"] == [0.1]


def test_a_folder_that_is_deleted_while_it_is_viewed(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", [group(i, f"p{i}", answer("a", 0), answer("b", 1)) for i in range(3)])
    client = TestClient(make_app([Run(folder)]), base_url="http://127.0.0.1")
    shutil.rmtree(folder)
    for path in ("/api/group/0/0", "/media/0/0/0", "/sheet/0/0/0"):
        assert client.get(path).status_code == 404
    assert client.get("/api/runs").json()[0]["groups"]["step"] == [0, 1, 2]
    (empty,) = client.get("/api/runs?refresh=1").json()
    assert empty["groups"]["step"] == empty["groups"]["id"] == []
    assert empty["curves"] == {}
    assert client.get("/api/group/0/0").status_code == 404


def test_a_run_with_curves_and_no_groups_yet(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("train/loss", 0.5, 3)
    names = ("val/greedy_rank", "val/win_rate", "val/win_rate/low", "val/win_rate/high")
    for name in names:
        writer.add_scalar(name, 0.25, 3)
    writer.close()
    one = Run(tmp_path)
    assert one.overview["curves"] == {"train/loss": [[3.0, 0.5]], **{name: [[3.0, 0.25]] for name in names}}
    assert one.overview["groups"]["step"] == []


@pytest.mark.parametrize(("words", "message"), [(["{0}/none"], "is no folder of a run"), (["{0}"], "holds no samples")])
def test_mistakes_are_named(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        main([word.format(tmp_path) for word in words])


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    folder = run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1))])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"--port \d+ at 127.0.0.1 cannot be had"):
            main([str(folder), "--port", str(taken.getsockname()[1])])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], r"--port is 99999; it must be 0 .* to 65535"),
        (["--port", "-1"], r"--port is -1"),
        (["--host", "no such host"], r"--host is 'no such host'"),
        (["--host", "a..b"], r"--host is 'a..b'"),
        (["--host", "192.0.2.1"], r"--host 192.0.2.1 is no address of this machine"),
    ],
)
def test_an_address_that_cannot_be(words: list[str], message: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1))])
    with pytest.raises(ValueError, match=message):
        main([str(folder), *words])


def test_it_says_where_it_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    told: list[tuple[str, int]] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: told.append(sockets[0].getsockname()))
    folder = run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1))])
    assert main([str(folder), "--port", "0"]) == 0
    ((host, port),) = told
    assert host == "127.0.0.1"
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out


def test_export_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "one", [group(0, "p", answer("a", 0), answer("b", 1))])
    assert main([str(folder), "--export", str(tmp_path / "page.html")]) == 0
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
