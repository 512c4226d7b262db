"""Shared by all tests: no network, no progress bars, a tiny model made on the spot, and the real one where a test asks."""
import ipaddress
import os
import socket

import pytest

os.environ.setdefault("COURSE_PROFILE", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["COURSE_QUIET"] = "1"  # no progress bars, in the notebooks' kernels neither

CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


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
                raise ConnectionRefusedError(f"a test tried to reach {address[0]}; tests run without a network")
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

    found = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: found.append(data))
    return found


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a random two-layer Llama (tied embeddings) and a byte-level tokenizer with a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({token: index for index, token in enumerate(specials + letters)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                        pad_token="<|endoftext|>", chat_template=CHATML, model_max_length=256)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
                         bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder):
    """(model, tokenizer) of the tiny folder, in fp32, fresh for each test."""
    from course_lib import loading

    return loading.load(tiny_folder, "fp32")


@pytest.fixture(scope="session")
def real_folder():
    """The folder of the real SmolLM2-135M-Instruct in the cache that the set-up filled; tests must not change it."""
    from course_lib import default_model

    return default_model.folder()


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
