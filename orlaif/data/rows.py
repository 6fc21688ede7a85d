"""Rows of a data file: JSONL, JSON or Parquet, local or behind a URL that fsspec knows.

Each row comes with where it stands (file and line, or row), so that whatever is wrong with it can be named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl

from orlaif.data.json_objects import check_keys, check_own_keys, parse_json
from orlaif.data.text_files import check_texts, text_lines, whole_text

DATASETS = "datasets://"

Row = tuple[str, Any]


def is_url(path: str) -> bool:
    """Whether fsspec has to open it."""
    return "://" in path


def join(root: str, path: str) -> str:
    """``path`` below ``root``, unless it is absolute or a URL."""
    if is_url(path):
        return path
    return f"{root.rstrip('/')}/{path}" if is_url(root) else os.path.join(root, path)


def folder_of(path: str) -> str:
    """The folder of a file or URL; that of a ``datasets://`` source is the folder it names."""
    if path.startswith(DATASETS):
        return path.removeprefix(DATASETS).partition("?")[0]
    return path.rsplit("/", 1)[0] if is_url(path) else os.path.dirname(path)


def open_file(path: str, mode: str = "rb") -> Any:
    """An open file; raises ValueError where there is none."""
    if is_url(path):
        import fsspec

        try:
            return fsspec.open(path, mode, **({} if "b" in mode else {"encoding": "utf-8"})).open()
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"data file {path}: cannot be opened ({error})") from error
    if not os.path.isfile(path):
        raise ValueError(f"data file {path}: no such file")
    return open(path, mode, encoding=None if "b" in mode else "utf-8")


def read_rows(path: str) -> Iterator[tuple[str, Any | ValueError]]:
    """All rows of a file; one that is not valid JSON comes as the ValueError that says so.

    Args:
        path: ends in ``.json`` (a list, or an object with a list under ``data``), ``.parquet``, or is read as JSONL; or
            ``datasets://<hub id or folder>?split=train&name=...``, which the library datasets streams.

    Yields:
        Where the row stands, and its value.

    Raises:
        ValueError: no such file, or one that cannot be read at all, by name.
    """
    if path.startswith(DATASETS):
        yield from _datasets(path)
    elif path.endswith(".parquet"):
        yield from _parquet(path)
    elif path.endswith(".json"):
        yield from _json(path)
    else:
        yield from _jsonl(path)


def _datasets(path: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"data file {path}: needs the library datasets (pip install '.[data]')") from None
    source, _, query = path.removeprefix(DATASETS).partition("?")
    settings = dict(parse_qsl(query))
    if unknown := sorted(set(settings) - {"split", "name", "revision"}):
        raise ValueError(f"data file {path}: unknown setting {unknown[0]!r}; known are split, name, revision")
    split = settings.pop("split", "train")
    try:
        rows = datasets.load_dataset(source, split=split, streaming=True, **settings)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"data file {path}: cannot be opened ({error})") from error
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", {name: value for name, value in row.items() if value is not None}


def _jsonl(path: str) -> Iterator[tuple[str, Any | ValueError]]:
    with open_file(path) as file:
        for number, line in text_lines(path, file):
            where = f"{path}, line {number}"
            if isinstance(line, ValueError):
                yield where, line
            elif line.strip():
                yield where, _parsed(line, where)


def _parsed(line: str, where: str) -> Any | ValueError:
    try:
        row = parse_json(line)
        check_keys(row, where)
        if "\\u" in line:
            check_texts(row, where)
    except json.JSONDecodeError as error:
        return ValueError(f"{where}: not valid JSON ({error})")
    except ValueError as error:
        return error
    return row


def whole_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: no such file, no UTF-8, or no JSON, by file and line.
    """
    with open_file(path) as file:
        text = whole_text(path, file)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error})") from error


def _json(path: str) -> Iterator[tuple[str, Any | ValueError]]:
    value = whole_json(path)
    check_own_keys(value, f"data file {path}")
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise ValueError(f"data file {path}: it must hold a list of rows, found {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        try:
            check_keys(row, where)
            check_texts(row, where)
        except ValueError as error:
            yield where, error
        else:
            yield where, row


def _parquet(path: str) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"data file {path}: Parquet needs pyarrow (pip install '.[data]')") from None
    number = 0
    with open_file(path) as file:
        try:
            for batch in pq.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"data file {path}: not a readable Parquet file ({error})") from error


def task_files(folder: str, tasks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Task and path of each ``<task>.json`` of a folder, in the order of ``tasks``, as far as there are any."""
    paths = ((task, os.path.join(folder, f"{task}.json")) for task in tasks)
    return ((task, path) for task, path in paths if os.path.isfile(path))


EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def find_video(root: str, name: str) -> str:
    """The file of a video that is named with or without its extension; ``root/name`` itself where none is there."""
    stem = join(root, name)
    if is_url(stem):
        return stem
    return next((path for path in (stem, *(stem + ending for ending in EXTENSIONS)) if os.path.isfile(path)), stem)


def object_row(row: Any, where: str) -> dict[str, Any]:
    """A row that must be an object; raises ValueError naming ``where``."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, found {type(row).__name__}")
    return row


#: Fields that only describe a row (where it is from, how it was made): published files have them beside what they say,
#: and every adapter of a published format ignores them.
BOOKKEEPING = (
    *("id", "uid", "idx", "index", "question_id", "prompt_id", "video_id", "split", "license", "url"),
    *("source", "data_source", "src_data", "dataset", "dataset_name", "ds_name", "origin_dataset"),
    *("category", "type", "task", "task_type", "question_type", "domain", "language", "lang"),
    *("duration", "length", "num_turns", "model", "score", "metadata", "meta"),
)


def refuse_unused(row: dict[str, Any], where: str, used: tuple[str, ...]) -> None:
    """Raise ValueError for a field of a published format that its adapter would leave out.

    Args:
        row: as read; a field that is null or empty says nothing.
        where: file and line.
        used: fields that the adapter reads, or knows to be of no use; those of :data:`BOOKKEEPING` may be as well.
    """
    for name, value in row.items():
        if name not in used and name not in BOOKKEEPING and value not in (None, "", [], {}):
            raise ValueError(
                f"{where}: field {name!r} is {value!r}; this format has no use for it: remove it, or say what it means "
                f"by one of {', '.join(used)}"
            )


def refuse_others(value: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
    """Raise ValueError for keys of a message or a part, beyond the ``known`` ones, that say anything."""
    for name, other in value.items():
        if name not in known and other not in (None, "", [], {}):
            raise ValueError(f"{where} has {name!r}: {other!r}, which has no use here: remove it")


def text_field(row: dict[str, Any], name: str, where: str) -> str:
    """A field that must be a text; raises ValueError naming ``where`` and the field."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a text that is not empty")
    return value.strip()


def id_field(row: dict[str, Any], name: str, where: str) -> str:
    """A field that must be a text or a whole number, as a text; raises ValueError naming ``where`` and the field."""
    value = row.get(name)
    if type(value) is int:
        return str(value)
    return text_field(row, name, where)


def texts_field(row: dict[str, Any], name: str, where: str, least: int = 1) -> tuple[str, ...]:
    """A field that must be a list of texts; raises ValueError naming ``where`` and the field."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a list of {least} or more texts")
    return tuple(value)


def built_from(where: str, kind: type[Any], **fields: Any) -> Any:
    """``kind(**fields)`` of a row; a ValueError of its fields is raised again with ``where`` before it."""
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
