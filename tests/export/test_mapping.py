"""Mapped and read files: the memory that belongs to the process, and errors by name."""
import sys

import pytest

from course_lib.export import mapping


@pytest.mark.parametrize("name", ["safetensors", "gguf"])
def test_a_mapped_file_takes_no_memory_of_its_own(real_folder, real_gguf, name):
    path = real_folder / "model.safetensors" if name == "safetensors" else real_gguf / "BF16.gguf"
    figures = mapping.memory_map_figures(path)
    size = path.stat().st_size / 1e6
    assert list(figures.index) == ["mapped", "read"] and (figures.open_s > 0).all()
    assert list(figures.columns) == ["open_s", "open_mb", "used_mb", "anonymous_mb"]
    if sys.platform == "linux":
        saved = figures.anonymous_mb["read"] - figures.anonymous_mb["mapped"]
        assert 0.8 * size < saved < 2.2 * size
        if name == "safetensors":  # llama.cpp asks for all pages while it opens (MAP_POPULATE)
            assert figures.open_mb["mapped"] < figures.open_mb["read"]


def test_files_that_cannot_be_mapped_are_named(tmp_path):
    with pytest.raises(ValueError, match="must end in .gguf or .safetensors"):
        mapping.memory_map_figures(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match="no file"):
        mapping.memory_map_figures(tmp_path / "model.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"123456789")
    with pytest.raises((OSError, RuntimeError)):
        mapping.memory_map_figures(tmp_path / "model.safetensors")
