"""Shared by all tests: no network, no progress bars, a tiny model, the real one where a test asks for it."""
import ipaddress
import os
import socket

import pytest

os.environ.setdefault("COURSE_PROFILE", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["COURSE_QUIET"] = "1"  # no progress bars, in the notebooks' kernels neither


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only loopback can be reached."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            try:
                loopback = ipaddress.ip_address(address[0]).is_loopback
            except ValueError:
                loopback = address[0] == "localhost"
            if not loopback:
                raise ConnectionRefusedError(f"a test tried to reach {address[0]}; tests have no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def english():
    """Every test starts in English, whatever the one before it chose."""
    from course_lib import runtime

    runtime.set_language("en")


@pytest.fixture
def shown(monkeypatch):
    """The list of what notebooks would display from now on."""
    import IPython.display

    displayed = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: displayed.append(data))
    return displayed


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a random two-layer Llama (tied embeddings) and a tokenizer of bytes that knows ChatML."""
    from course_lib.graders.tiny import tiny_model, tiny_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = tiny_tokenizer(context=256)
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, layers=2, spread=0.3, context=256, letters_only=False).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder):
    """(model, tokenizer) of the tiny folder, in fp32, fresh for each test."""
    from course_lib import loading

    return loading.load(tiny_folder, "fp32")


@pytest.fixture(scope="session")
def real_folder():
    """The folder of the real SmolLM2-135M-Instruct in the cache of the set-up; tests must not change it."""
    from course_lib import offline_models

    return offline_models.folder()


@pytest.fixture(scope="session")
def real(real_folder):
    """(model, tokenizer) of the real SmolLM2-135M-Instruct in fp32; tests must not change it."""
    from course_lib import loading

    return loading.load(real_folder, "fp32")


@pytest.fixture
def one_thread(request):
    """On tensors as small as the tiny model's a second thread only waits, and on a busy machine long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(threads if "real" in request.fixturenames else 1)
    yield
    torch.set_num_threads(threads)
