"""The head of a GGUF file (models.gguf_header): as gguf's own reader finds it, and damage by name."""
import gguf
import pytest

from course_lib.models.gguf_header import read_gguf_header


def test_the_header_agrees_with_ggufs_reader(tiny_gguf):
    header = read_gguf_header(tiny_gguf)
    reader = gguf.GGUFReader(tiny_gguf)
    assert header.size == tiny_gguf.stat().st_size and header.version == 3
    ours = [(tensor.name, tensor.shape, tensor.type, tensor.size, tensor.offset) for tensor in header.tensors]
    theirs = [(tensor.name, tuple(reversed(tensor.shape.tolist())), tensor.tensor_type.name, tensor.n_bytes,
               tensor.data_offset) for tensor in reader.tensors]
    assert ours == theirs
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == 259  # an array of that length
    assert "<|im_start|>" in header.metadata["tokenizer.chat_template"]


def test_what_is_no_gguf_is_reported(tmp_path, tiny_gguf):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(OSError, match=r"no GGUF file: it starts with b'PK"):
        read_gguf_header(path)
    path.write_bytes(b"")
    with pytest.raises(OSError, match="no GGUF file"):
        read_gguf_header(path)
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(64))
    with pytest.raises(OSError, match="version 9; known are 2 and 3"):
        read_gguf_header(path)
    path.write_bytes(tiny_gguf.read_bytes()[:8] + b"\xff" * 16)
    with pytest.raises(OSError, match="damaged.*counts"):
        read_gguf_header(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_gguf_header(tmp_path / "ntensor.gguf")
