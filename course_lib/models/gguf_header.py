"""Read the header of a GGUF file: its metadata, and the name, shape and type of each tensor.

    magic "GGUF" · version · number of tensors · number of metadata entries    24 bytes
    metadata: key, type, value          architecture, tokenizer, chat template
    tensors: name, shape, type, offset
    padding, then the weights           each tensor at its offset, ready to be mapped into memory

The header determines how long the file must be, so a truncated file is detected before llama.cpp maps it.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
from __future__ import annotations

import mmap
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_LONGEST_LIST = 64  # values of an array; of a longer one (the tokenizer's), only the length is kept


@cache
def import_gguf() -> ModuleType:
    """Import the package gguf without its optional mistral_common, which takes seconds to import."""
    if "mistral_common" not in sys.modules:
        sys.modules["mistral_common"] = None
        try:
            import gguf
        finally:
            del sys.modules["mistral_common"]
    import gguf

    return gguf


@dataclass(frozen=True)
class GgufTensor:
    """Name, shape, type and location of one tensor."""

    name: str
    shape: tuple[int, ...]  # in torch's order (rows, columns)
    type: str  # such as "Q4_K"
    offset: int  # in the file
    size: int  # in bytes


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file."""

    version: int
    metadata: dict[str, object] = field(repr=False)  # arrays of more than 64 values: only their length
    tensors: list[GgufTensor] = field(repr=False)
    size: int  # bytes that the file must have

    def bytes_by_type(self) -> Counter[str]:
        """Return how many bytes are stored in each type, as a file such as "Q4_K_M" mixes several types."""
        counter: Counter[str] = Counter()
        for tensor in self.tensors:
            counter[tensor.type] += tensor.size
        return counter


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Read the header of a GGUF file, and check the file's length against it.

    Raises:
        FileNotFoundError: no such file.
        OSError: not a GGUF file, an unknown version or type, a damaged header, or a truncated file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    with open(path, "rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise OSError(f"{str(path)!r} is no GGUF file: it starts with {magic!r}, not with b'GGUF'")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                header = _Cursor(data).header()
            except (struct.error, ValueError, MemoryError, OverflowError) as error:
                raise OSError(f"the head of {str(path)!r} is damaged or cut off ({len(data):,} bytes): "
                              f"{error}") from error
            if len(data) < header.size:
                raise OSError(f"{str(path)!r} is cut off: it has {len(data):,} bytes, and its head promises "
                              f"{header.size:,}; fetch or export it anew")
    return header


class _Cursor:
    """Reads one value after another from the mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, code: str) -> int | float | bool:
        value, = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> str:
        length = self.take("Q")
        if length > len(self.data) - self.at:
            raise ValueError("a text reaches beyond the end of the file")
        self.at += length
        return self.data[self.at - length:self.at].decode()

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.take(self.scalar(kind))
        kind = self.take("I")
        length = self.take("Q")
        if kind == _STRING or length <= _LONGEST_LIST:
            values = [self.value(kind) for _ in range(self.checked(length))]
            return values if length <= _LONGEST_LIST else length
        self.at += struct.calcsize(self.scalar(kind)) * length
        return length

    def scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"type {kind} is unknown")
        return _SCALARS[kind]

    def checked(self, count: int) -> int:
        if count > len(self.data):  # each takes at least one byte
            raise ValueError(f"it counts {count:,} entries")
        return count

    def header(self) -> GgufHeader:
        self.at = 4
        version = self.take("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; known are 2 and 3")
        tensors = self.checked(self.take("Q"))
        keys = self.checked(self.take("Q"))
        metadata = {self.text(): self.value(self.take("I")) for _ in range(keys)}
        entries = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"alignment {alignment}")
        start = -(-self.at // alignment) * alignment
        placed = [replace(entry, offset=start + entry.offset) for entry in entries]
        size = max((tensor.offset + tensor.size for tensor in placed), default=self.at)
        return GgufHeader(version, metadata, placed, size)

    def tensor(self) -> GgufTensor:
        """Read one tensor entry, with an offset that counts from the start of the weights."""
        gguf = import_gguf()
        name = self.text()
        dimensions = self.take("I")
        if dimensions > 8:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.take("Q") for _ in range(dimensions))[::-1]  # GGUF lists the innermost first
        kind = gguf.GGMLQuantizationType(self.take("I"))
        values, size = gguf.GGML_QUANT_SIZES[kind]
        return GgufTensor(name, shape, kind.name, self.take("Q"), prod(shape) // values * size)
