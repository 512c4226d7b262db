"""Records in, checked: JSON Lines, JSON, Parquet, or a dataset of the hub.

A training run that stops after an hour, or worse, goes on with half of its texts empty, mostly failed on the first day: in
the file. So every record is looked at when it comes in, and what is wrong is reported with its place. Texts are brought to
Unicode NFC: Korean from macOS often arrives as NFD, two or three code points for one syllable, which no tokenizer expects.
"""
from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".parquet")


def load_records(source: str | Path, columns: Sequence[str] | Mapping[str, str], *, split: str | None = None) -> Dataset:
    """Records from a file or from the hub, every one of them checked; the result is held in memory.

    Args:
        source: a local .jsonl, .json (lines, or one list) or .parquet file, or a hub id, "owner/name". Code of a hub dataset
            is never run (`datasets` can't any more).
        columns: the columns that every record must have; others are left out. A mapping renames, and dots reach into nested
            records: {"question": "ko.question"}.
        split: for a file, only records whose field `split` is this; for the hub, a split as `datasets` writes it, "train" by
            default ("train[:1000]" takes the first thousand).

    Raises:
        ValueError: a broken line, a wrong encoding, a missing column, an empty value, a value of another type than before, each
            with its place; no records at all.
        FileNotFoundError, LookupError, ConnectionError: no such file, no such hub dataset, the hub cannot be reached.
    """
    from datasets import Dataset

    paths = dict(columns) if isinstance(columns, Mapping) else {column: column for column in columns}
    values: dict[str, list] = {column: [] for column in paths}
    kinds: dict[str, tuple[str, str]] = {}
    count, name = 0, source if _is_hub_id(source) else Path(source).name
    for place, record in _records(source, split):
        place = f"{name}, {place}"
        if not isinstance(record, dict):
            raise ValueError(f"{place}: holds a {type(record).__name__}; each record must be an object with named fields")
        if split is not None and not _is_hub_id(source) and _field(record, "split", place) != split:
            continue
        for column, path in paths.items():
            value = _clean(_field(record, path, place), f"{place}: column {path!r}")
            kind = _kind(value)
            expected, first = kinds.setdefault(column, (kind, place))
            if kind != expected:
                raise ValueError(f"{place}: column {path!r} holds a {kind}, but in {first} a {expected}")
            values[column].append(value)
        count += 1
    if not count:
        raise ValueError(f"{name} holds no records" + (f" of the split {split!r}" if split else ""))
    return Dataset.from_dict(values)


def _is_hub_id(source: str | Path) -> bool:
    return (isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
            and not source.lower().endswith(SUFFIXES) and not Path(source).exists())


def _records(source: str | Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """(place, record) of a source, one after the other."""
    if _is_hub_id(source):
        yield from ((f"row {row}", record) for row, record in enumerate(_from_hub(source, split or "train")))
        return
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"source is {str(source)!r}; it must be a hub id ('owner/name') or a file {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(source)!r}")
    if suffix == ".parquet":
        yield from _from_parquet(path)
    else:
        yield from _from_json(path)


def _from_hub(name: str, split: str) -> Dataset:
    from datasets import exceptions, load_dataset

    try:
        return load_dataset(name, split=split)
    except exceptions.DatasetNotFoundError as error:
        raise LookupError(f"the hub has no dataset {name!r}, or it is private or gated: {error}") from error
    except ConnectionError as error:
        raise ConnectionError(f"the hub cannot be reached, and {name} is not in its local cache: check the network, or use a "
                              "local file") from error


def _from_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path.name}: cannot be read as Parquet ({error})") from error
    yield from ((f"row {row}", record) for row, record in enumerate(records))


def _from_json(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:  # bytes: only \n ends a line, and an offset can be named
        if path.suffix.lower() == ".json" and file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            file.seek(0)
            yield from ((f"entry {row}", record) for row, record in enumerate(_parse(file.read(), path.name, 0, None)))
            return
        file.seek(0)
        offset = 0
        for number, line in enumerate(file, 1):
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield f"line {number}", _parse(line.rstrip(b"\r\n"), path.name, offset, number)
            offset += len(line)


def _parse(data: bytes, name: str, offset: int, number: int | None) -> Any:
    """The JSON value in `data`, which starts at byte `offset` of the file, in line `number` (None: it is the whole file)."""
    try:
        return json.loads(data.decode("utf-8-sig" if offset == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        # "utf-8-sig" counts from behind the mark
        start = error.start + (3 if offset == 0 and data.startswith(b"\xef\xbb\xbf") else 0)
        line = number or data[:start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}, byte {offset + start} of the file: not UTF-8; save the file as UTF-8 (Korean "
                         "files from Windows are often CP949, text from Excel often UTF-16)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {number or error.lineno}, column {error.colno}: no valid JSON ({error.msg})") from None


def _field(record: dict, path: str, place: str) -> Any:
    if path in record:
        return record[path]
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"{place}: column {path!r} is missing; there are {', '.join(map(str, record))}")
        value = value[key]
    return value


def _kind(value: Any) -> str:
    """The type of a value, as far as one column must have one; whole and decimal numbers go together."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    if isinstance(value, list):
        return f"list of {' and '.join(sorted({_kind(item) for item in value}))}"
    return "text" if isinstance(value, str) else type(value).__name__


def _clean(value: Any, place: str) -> Any:
    """The value with its strings in NFC; no emptiness passes."""
    if value is None or (isinstance(value, (str, list, dict)) and not (value.strip() if isinstance(value, str) else value)):
        raise ValueError(f"{place} is empty")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place} holds half of a surrogate pair (such as \\ud83d alone), which is no character") from None
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [_clean(item, place) for item in value]
    return {key: _clean(item, place) for key, item in value.items()} if isinstance(value, dict) else value


def read_appended(path: Path, columns: Sequence[str]) -> list[dict]:
    """The records of a JSON Lines file that is being appended to; empty where there is none yet, and its folder is made.

    A last line that an interruption cut off is removed from the file, so that the next record starts a line of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        if _is_json(content[end:]):  # whole, but an editor took the line break off
            file.write(b"\n")
        else:
            file.truncate(end)
            content = content[:end]
    return load_records(path, columns).to_list() if content.strip() else []


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:  # a UnicodeDecodeError is one
        return False
    return True
