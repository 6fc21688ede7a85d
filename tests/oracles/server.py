"""A chat-completions server in a thread, with a script of misbehaviour."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Reply = Callable[[dict[str, Any]], Any]


def candidates(request: dict[str, Any]) -> dict[str, str]:
    """Letters and texts that a judge was asked to order: one JSON string to a line."""
    text = request["messages"][-1]["content"][-1]["text"]
    lines = re.findall(r"^([A-Z]): (.*)$", text, flags=re.MULTILINE)
    assert len({letter for letter, _ in lines}) == len(lines)
    return {letter: json.loads(line) for letter, line in lines}


def shortest_first(request: dict[str, Any]) -> str:
    """A faithful judge: by length, equals together."""
    found = candidates(request)
    lengths = sorted({len(text) for text in found.values()})
    return json.dumps({"ranking": [[k for k, text in found.items() if len(text) == n] for n in lengths]})


def as_shown(request: dict[str, Any]) -> str:
    """A judge that looks at places only."""
    return json.dumps({"ranking": list(candidates(request))})


def short_is_true(request: dict[str, Any]) -> Any:
    """``/v1/systemone``: the shorter the last line of what it is asked about, the surer."""
    answers = {"yes": {"type": "noul", "noul": 1 / (1 + len(request["state"].splitlines()[-1]))}}
    return 200, {}, json.dumps({"model": "m", "answers": answers, "usage": {}})


class ChatServer:
    """Serves ``reply(request)``: a text, or ``(status, headers, body)``, or None to close the connection.

    Attributes:
        requests: bodies received.
        headers: headers of each.
        most_at_once: requests in work at the same time.
    """

    def __init__(self, reply: Reply, delay_s: float = 0.0) -> None:
        self.reply, self.delay_s = reply, delay_s
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                outer._serve(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay_s)
            answer = self.reply(body)
            if answer is None:
                handler.connection.close()
                return
            status, headers, text = answer if isinstance(answer, tuple) else (200, {}, completion(answer))
            handler.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(text)),
                **headers,
            }.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(text.encode())
        except OSError:  # the client gave up
            pass
        finally:
            with self._lock:
                self._now -= 1

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(text: str) -> str:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
