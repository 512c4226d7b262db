"""The head of a GGUF file, read by hand: what the model is, and which type each tensor has.

    magic "GGUF" · version · number of tensors · number of metadata            24 bytes
    metadata: key, type, value          the architecture, the tokenizer, the chat template
    tensors: name, shape, type, offset
    padding, then the weights           each tensor at its offset, to be mapped into memory as it is

The head promises how long the file must be, so a file that was cut off is noticed before llama.cpp maps it.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""
from __future__ import annotations

import mmap
import struct
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_LIST = 64  # values of an array that are kept; of a longer one (the tokenizer's) only its length


@cache
def import_gguf() -> ModuleType:
    """The package gguf, without mistral_common: it would import that for Mistral's own tokenizer files, which takes seconds."""
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
    """One tensor: `shape` as torch has it (rows, columns), `type` such as "Q4_K", `size` in bytes, `offset` in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """The head of a GGUF file.

    Attributes:
        metadata: key → value; of an array of more than 64 values (the tokenizer's) its length.
        size: bytes that the file must have.
    """

    version: int
    metadata: dict[str, object] = field(repr=False)
    tensors: list[GgufTensor] = field(repr=False)
    size: int

    def bytes_by_type(self) -> Counter[str]:
        """How many bytes are stored in each type: what "Q4_K_M" is made of."""
        counter: Counter[str] = Counter()
        for tensor in self.tensors:
            counter[tensor.type] += tensor.size
        return counter


def read_gguf_header(path: str | Path) -> GgufHeader:
    """Read the head of a GGUF file, and check the file's length against it.

    Raises:
        FileNotFoundError: no such file.
        OSError: no GGUF, a version or type that is unknown, a damaged head, or a file that was cut off; says which.
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
            except (struct.error, ValueError, UnicodeDecodeError, MemoryError, OverflowError) as error:
                raise OSError(f"the head of {str(path)!r} is damaged or cut off ({len(data):,} bytes): {error}") from error
            if len(data) < header.size:
                raise OSError(f"{str(path)!r} is cut off: it has {len(data):,} bytes, and its head promises {header.size:,}; "
                              "fetch or export it anew")
    return header


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

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
        kind, length = self.take("I"), self.take("Q")
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
        if count > len(self.data):  # each takes a byte at least
            raise ValueError(f"it counts {count:,} entries")
        return count

    def header(self) -> GgufHeader:
        self.at = 4
        version = self.take("I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; known are 2 and 3")
        tensors, keys = self.checked(self.take("Q")), self.checked(self.take("Q"))
        metadata = {self.text(): self.value(self.take("I")) for _ in range(keys)}
        found = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"alignment {alignment}")
        start = -(-self.at // alignment) * alignment
        found = [GgufTensor(name, shape, kind, start + offset, size) for name, shape, kind, offset, size in found]
        return GgufHeader(version, metadata, found, max((tensor.offset + tensor.size for tensor in found), default=self.at))

    def tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        gguf = import_gguf()
        name, dimensions = self.text(), self.take("I")
        if dimensions > 8:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.take("Q") for _ in range(dimensions))[::-1]  # ggml counts from the innermost
        kind = gguf.GGMLQuantizationType(self.take("I"))
        values, size = gguf.GGML_QUANT_SIZES[kind]
        return name, shape, kind.name, self.take("Q"), prod(shape) // values * size
