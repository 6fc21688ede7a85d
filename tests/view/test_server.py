"""The server gives the page, groups and the media that samples name; nothing else, to nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from orlaif.cli.view import main
from orlaif.view.export import one_file
from orlaif.view.run import Run
from orlaif.view.server import make_app
from tests.view.runs import answer, group, run

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\u202e\x00\x1b[31m'


@pytest.fixture
def client(tmp_path: Path, shared_videos: Path) -> TestClient:
    clip = {"path": str(next(shared_videos.glob("*.mp4"))), "times_s": [0.0, 0.2]}
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
    assert client.get("/frame/0/0/0/1").content[:2] == b"\xff\xd8"
    missing = ["/media/0/0/1", "/media/0/0/2", "/media/0/9/0", "/media/7/0/0", "/media/-1/0/0", "/frame/0/0/0/2"]
    missing += ["/frame/0/0/1/0", "/../pyproject.toml", "/%2e%2e/pyproject.toml", "/server.py", "/api/group/0/2"]
    missing += ["/media/0/1/0", "/media/0/1/1"]
    for path in missing:
        assert client.get(path).status_code == 404, path


def test_only_get_and_only_by_its_own_name(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/api/runs").status_code == 405
    assert client.get("/api/runs", headers={"Host": "evil.example"}).status_code == 400


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
