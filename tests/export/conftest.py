"""Each conversion is a process of its own and takes seconds: files that tests only read are made once."""
import errno
import shutil
import sys
from contextlib import contextmanager

import pytest

import course_lib as cl
from course_lib.export import gguf, onnx
from tests.export.greedy import greedy

QUESTIONS = 12
NEW_TOKENS = 16


@pytest.fixture(scope="session")
def questions():
    return [sample["question"] for sample in cl.load_qa("en", "test")][:QUESTIONS]


@pytest.fixture(scope="session")
def references(real, questions):
    """transformers' answers in fp32."""
    return [greedy(*real, question, NEW_TOKENS) for question in questions]


@pytest.fixture(scope="session")
def real_gguf(real_folder, tmp_path_factory):
    """A folder with the real model as GGUF in BF16 (its own precision), F16, Q8_0 and Q4_K_M."""
    folder = tmp_path_factory.mktemp("real_gguf")
    plain = gguf.to_gguf(real_folder, folder / "BF16.gguf", quantization="BF16")
    for quantization in ("F16", "Q8_0", "Q4_K_M"):
        gguf.to_gguf(plain, folder / f"{quantization}.gguf", quantization=quantization)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["BF16.gguf", "F16.gguf", "Q4_K_M.gguf", "Q8_0.gguf"]
    return folder


@pytest.fixture(scope="session")
def real_onnx(real_folder, tmp_path_factory):
    """The real model as ONNX in fp32."""
    return onnx.to_onnx(real_folder, tmp_path_factory.mktemp("real_onnx") / "onnx", precision="fp32")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder, tmp_path_factory):
    """The tiny model as GGUF in F32."""
    return gguf.to_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf", quantization="F32")


@pytest.fixture
def converted(monkeypatch, tiny_gguf):
    """llama.cpp's converter gives the tiny model at once, for tests of what comes after it."""
    def run_module(arguments, what, *, first_path):
        shutil.copyfile(tiny_gguf, arguments[-1])

    monkeypatch.setattr(gguf, "run_module", run_module)


@pytest.fixture
def full_disk():
    """A function that fails as a write to a full disk does."""
    def write(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    return write


@pytest.fixture
def files_stay_small():
    """A context manager in which no file, of this process or its children, may grow beyond 50 kB."""
    if sys.platform == "win32":
        pytest.skip("there is no limit of a file's size on Windows")
    import resource

    @contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
