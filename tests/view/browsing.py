"""Runs served to a real browser, and how tests wait for its page."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from orlaif.view.run import Run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
IN_A_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or importlib.util.find_spec("playwright") is None,
        reason="needs Chromium and Playwright; make browser-test",
    ),
]


def served(runs: list[Run]) -> Iterator[str]:
    import uvicorn

    from orlaif.view.server import make_app

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # so that who comes before the server waits for it
    server = uvicorn.Server(uvicorn.Config(make_app(runs), log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


def ready(page: Any, address: str) -> Any:
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def until(page: Any, expression: str) -> None:
    """Wait for it to be true. Playwright's own waiting evaluates within the page, which the page forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")
