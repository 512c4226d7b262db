"""Load records from JSON Lines, JSON, Parquet or a dataset of the Hugging Face Hub, and check each one.

Each bad record is reported with its file and line at once, instead of stopping a training run after an hour.
(The JSON reader of `datasets` names no line and turns a missing field into None.) Texts are normalized to
Unicode NFC: Korean text from macOS is often NFD, with two or three code points per syllable.
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
_BOM = b"\xef\xbb\xbf"  # the byte order mark that some editors put before UTF-8


def load_records(
    source: str | Path, columns: Sequence[str] | Mapping[str, str], *, split: str | None = None,
) -> Dataset:
    """Load records from a file or the Hub into memory, and check every one.

    Args:
        source: a local .jsonl, .json (lines, or one list) or .parquet file, or a Hub id, "owner/name".
            `datasets` runs no code of a Hub dataset.
        columns: the columns that every record must have; others are left out. A mapping renames, and dots
            reach into nested records: {"question": "ko.question"}.
        split: for a file, keeps only records whose field `split` is this; for the Hub, a split in the syntax
            of `datasets`, "train" by default ("train[:1000]" takes the first thousand).

    Raises:
        ValueError: a broken line, wrong encoding, missing column, empty value, mixed types, or no records.
        FileNotFoundError, LookupError: there is no such file, or no such Hub dataset.
        ConnectionError: the Hub cannot be reached.
    """
    from datasets import Dataset

    paths = dict(columns) if isinstance(columns, Mapping) else {column: column for column in columns}
    values: dict[str, list] = {column: [] for column in paths}
    kinds: dict[str, tuple[str, str]] = {}  # column → type and position of its first value
    on_hub = _is_hub_id(source)
    name = source if on_hub else Path(source).name
    count = 0
    for position, record in _from_hub(source, split) if on_hub else _from_file(Path(source)):
        position = f"{name}, {position}"
        if not isinstance(record, dict):
            raise ValueError(f"{position}: holds a {type(record).__name__}; "
                             "each record must be an object with named fields")
        if split is not None and not on_hub and _field(record, "split", position) != split:
            continue
        for column, path in paths.items():
            value = _clean(_field(record, path, position), f"{position}: column {path!r}")
            kind = _kind(value)
            expected, first = kinds.setdefault(column, (kind, position))
            if kind != expected:
                raise ValueError(f"{position}: column {path!r} holds a {kind}, but in {first} a {expected}")
            values[column].append(value)
        count += 1
    if not count:
        raise ValueError(f"{name} holds no records" + (f" of the split {split!r}" if split else ""))
    return Dataset.from_dict(values)


def _is_hub_id(source: str | Path) -> bool:
    return (isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
            and not source.lower().endswith(SUFFIXES) and not Path(source).exists())


def _from_hub(name: str, split: str | None) -> Iterator[tuple[str, Any]]:
    """Yield (position, record) for each record of a Hub dataset."""
    from datasets import exceptions, load_dataset

    try:
        dataset = load_dataset(name, split="train" if split is None else split)
    except exceptions.DatasetNotFoundError as error:
        raise LookupError(f"the hub has no dataset {name!r}, or it is private or gated: {error}") from error
    except ConnectionError as error:
        raise ConnectionError(f"the hub cannot be reached, and {name} is not in its local cache: "
                              "check the network, or use a local file") from error
    yield from ((f"row {row}", record) for row, record in enumerate(dataset))


def _from_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (position, record) for each record of a file; the suffix decides the format."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"source is {str(path)!r}; it must be a hub id ('owner/name') or a file "
                         + ", ".join(SUFFIXES))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if suffix == ".parquet":
        yield from _from_parquet(path)
        return
    with path.open("rb") as file:  # bytes: only \n ends a line, and an offset can be named
        if suffix == ".json" and file.read(64).removeprefix(_BOM).lstrip()[:1] == b"[":
            file.seek(0)
            yield from ((f"entry {row}", record) for row, record in enumerate(_parse(file.read(), path.name)))
            return
        file.seek(0)
        offset = 0
        for number, line in enumerate(file, 1):
            if line.removeprefix(_BOM).strip(b" \t\r\n"):
                yield f"line {number}", _parse(line.rstrip(b"\r\n"), path.name, offset, number)
            offset += len(line)


def _from_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path.name}: cannot be read as Parquet ({error})") from error
    yield from ((f"row {row}", record) for row, record in enumerate(records))


def _parse(data: bytes, name: str, offset: int = 0, first_line: int = 1) -> Any:
    """Parse the JSON value in `data`, which starts at byte `offset` of the file, in line `first_line`."""
    mark = len(_BOM) if offset == 0 and data.startswith(_BOM) else 0
    try:
        return json.loads(data[mark:].decode())
    except UnicodeDecodeError as error:
        start = mark + error.start
        line = first_line + data[:start].count(b"\n")
        raise ValueError(f"{name}, line {line}, byte {offset + start} of the file: not UTF-8; save it so "
                         "(Korean files from Windows are often CP949, text from Excel UTF-16)") from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{name}, line {line}, column {error.colno}: no valid JSON ({error.msg})") from None


def _field(record: dict, path: str, position: str) -> Any:
    if path in record:
        return record[path]
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            names = ", ".join(map(str, record))
            raise ValueError(f"{position}: column {path!r} is missing; there are {names}")
        value = value[key]
    return value


def _kind(value: Any) -> str:
    """The type of a value; a column must have one type, and whole and decimal numbers share one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    if isinstance(value, list):
        return f"list of {' and '.join(sorted({_kind(item) for item in value}))}"
    return "text" if isinstance(value, str) else type(value).__name__


def _clean(value: Any, position: str) -> Any:
    """The value with its strings in NFC; an empty value, also a nested one, raises a ValueError."""
    if value is None or value in ([], {}) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{position} is empty")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{position} holds half of a surrogate pair (such as \\ud83d alone), "
                             "which is no character") from None
        return unicodedata.normalize("NFC", value)
    if isinstance(value, list):
        return [_clean(item, position) for item in value]
    return {key: _clean(item, position) for key, item in value.items()} if isinstance(value, dict) else value


def read_appended(path: Path, columns: Sequence[str]) -> list[dict]:
    """Read a JSON Lines file that a run appends to, without a last line that was cut off; creates folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        end = content.rfind(b"\n") + 1
        try:
            json.loads(content[end:])
            file.write(b"\n")  # the line is whole, but an editor took its line break off
        except ValueError:  # the line was cut off (or mid-character: a UnicodeDecodeError is a ValueError)
            file.truncate(end)
    return load_records(path, columns).to_list() if path.read_bytes().strip() else []
