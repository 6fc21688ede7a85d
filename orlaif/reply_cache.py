"""Replies of a server on disk: SQLite in WAL mode, texts only, nothing that is executed when it is read.

Several processes may write at once, and one that is killed loses no reply that it had kept. SQLite's locks do not reach
across machines: on a network drive each machine needs another folder.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time

FILE = "replies.sqlite3"
#: What ``diskcache`` called its file, which orlaif wrote before; its values are pickles, so it is never opened.
_DISKCACHE_FILE = "cache.db"
_WAIT_S = 60.0


class ReplyCacheError(OSError):
    """A cache that can be neither read nor written: a full disk, a file that is none, a lock that is never released."""


class ReplyCache:
    """All replies to each request, in the order in which they came.

    Args:
        folder: of the cache, made on first use.
        field: what a recipe calls the folder, for errors.

    Raises:
        ValueError: the folder of an older version, or a path that is no folder.
    """

    def __init__(self, folder: str, field: str = "client.cache_dir") -> None:
        if os.path.exists(os.path.join(folder, _DISKCACHE_FILE)):
            raise ValueError(
                f"{field} is {folder!r}, a cache of an older version (diskcache), whose replies are pickles and not "
                f"read: name another folder, or delete {_DISKCACHE_FILE} there"
            )
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ValueError(f"{field} is {folder!r}, a file; it must be a folder")
        self.folder, self.field = folder, field
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0

    @property
    def path(self) -> str:
        """Path of the JSONL file that the replies lie in."""
        return os.path.join(self.folder, FILE)

    def replies(self, request: str) -> list[str]:
        """All replies to a request so far, the first one first; raises ReplyCacheError."""
        rows = self._run("SELECT reply FROM replies WHERE request = ? ORDER BY place", request)
        return [json.loads(text) for (text,) in rows]

    def keep(self, request: str, place: int, reply: str) -> None:
        """Keep a reply as the one at ``place``, unless another process has kept one there; raises ReplyCacheError."""
        # As JSON, for a reply may hold half of a surrogate pair, which is no text for SQLite.
        self._run("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", request, place, json.dumps(reply))

    def _run(self, statement: str, *values: str | int) -> list[tuple[str]]:
        with self._lock:
            try:
                return self._open().execute(statement, values).fetchall()
            except (sqlite3.Error, OSError) as error:
                raise ReplyCacheError(f"{self.field}: {self.path}: {error}") from error

    def _open(self) -> sqlite3.Connection:
        """The connection of this process; one that came with a fork is not used."""
        if self._connection is None or self._process != os.getpid():
            os.makedirs(self.folder, exist_ok=True)
            # Without transactions of Python's making: each statement is whole on disk, or not there.
            connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            _into_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (request TEXT, place INTEGER, reply TEXT, "
                "PRIMARY KEY (request, place)) WITHOUT ROWID"
            )
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def __getstate__(self) -> dict[str, str]:
        """Without what belongs to this process."""
        return {"folder": self.folder, "field": self.field}

    def __setstate__(self, state: dict[str, str]) -> None:
        """Opened anew where it is used."""
        self.__init__(state["folder"], state["field"])  # type: ignore[misc]


def _into_wal(connection: sqlite3.Connection) -> None:
    """WAL mode; SQLite does not wait by itself for another process that is making the same change."""
    end = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)
