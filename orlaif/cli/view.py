"""``orlaif view outputs/my_run [outputs/other]``: a local page of what runs did, or one file of it to send around."""

from __future__ import annotations

import errno
import importlib
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orlaif.arguments import HelperParser

if TYPE_CHECKING:
    from orlaif.view.run import Run


def main(words: Sequence[str]) -> int:
    """The subcommand; returns the exit status."""
    parser = HelperParser(
        prog="orlaif view",
        description="A local page: curves, signs of trouble, and every group that was trained on. Needs '.[view]'.",
    )
    parser.add_argument("runs", nargs="+", metavar="run_dir", help="a run's folder; several are shown side by side")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; by default only this machine sees it")
    parser.add_argument("--port", type=int, default=8420, help="0 takes any that is free")
    parser.add_argument("--export", metavar="page.html", help="write one file, without videos, instead of serving")
    parser.add_argument(
        "--most", type=int, default=500, help="with --export, groups that it holds whole, evenly spaced"
    )
    parser.add_argument(
        "--frames_mb", type=float, default=20.0, help="with --export, of frames that it holds, each prompt's once"
    )
    given = parser.parse_args(list(words))
    from orlaif.view.export import one_file
    from orlaif.view.run import Run

    if not 0 <= given.port <= 65535:
        raise ValueError(f"--port is {given.port}; it must be 0 (any that is free) to 65535")
    runs = [Run(Path(folder)) for folder in given.runs]
    for run in runs:
        if run.overview["left_out"] is not None:
            print(f"orlaif view: {run.overview['left_out']}", file=sys.stderr)
    if given.export is not None:
        path = Path(given.export)
        path.write_text(one_file(runs, given.most, given.frames_mb), encoding="utf-8")
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
        return 0
    return serve(runs, given.host, given.port)


def serve(runs: Sequence[Run], host: str, port: int) -> int:
    """Serve until Ctrl-C; says where."""
    try:
        import uvicorn

        from orlaif.view.server import make_app
    except ImportError as error:
        raise ValueError(f"orlaif view serves by starlette and uvicorn ({error}): pip install '.[view]'") from None
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(
            f"--host is {host!r}, which is no address or name of this machine ({error}); "
            "127.0.0.1 is seen by this machine only, 0.0.0.0 by others as well"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ValueError(f"--host {host} is no address of this machine; 127.0.0.1 always is") from None
        raise ValueError(
            f"--port {port} at {host} cannot be had: {error.strerror}; --port 0 takes a free one"
        ) from None
    port = listening.getsockname()[1]
    hosts = ("localhost", host, socket.gethostname(), socket.getfqdn())
    print(f"http://{host if ':' not in host else f'[{host}]'}:{port}/ (Ctrl-C ends it)", flush=True)
    threading.Thread(target=load_decoder, daemon=True).start()
    config = uvicorn.Config(make_app(runs, hosts), log_level="warning")
    uvicorn.Server(config).run([listening])
    return 0


def load_decoder() -> None:
    """Import what decodes frames, which takes seconds, before the first frame is asked for."""
    importlib.import_module("torchcodec.decoders")
