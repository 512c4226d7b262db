"""llama.cpp in this process: transformers' tokens, a server for this machine only, damaged files by name."""
import errno
import socket

import pytest

import course_lib as cl
from course_lib import runtime
from course_lib.export import gguf_run, runners
from course_lib.inference import benchmark
from tests.export.conftest import NEW_TOKENS
from tests.export.greedy import ASK, prompt_ids


@pytest.mark.parametrize("name, least", [("F16.gguf", 0.97), ("BF16.gguf", 0.95), ("Q8_0.gguf", 0.90)])
def test_llama_cpp_agrees_with_transformers(real_gguf, references, questions, name, least):
    with gguf_run.GgufModel(real_gguf / name, threads=1) as model:
        answers = [model.tokens(question, max_new_tokens=NEW_TOKENS) for question in questions]
    assert runners.agreement(answers, references) >= least


def test_it_tokenizes_as_transformers_does(real_gguf, real, questions):
    _, tokenizer = real
    korean = "안녕하세요! 12345 + 678 = ?\n\n  tabs\tand 🙂"
    with gguf_run.GgufModel(real_gguf / "F16.gguf", threads=1) as model:
        for prompt in (*questions[:3], korean):
            expected = prompt_ids(tokenizer, prompt)
            text = tokenizer.decode(expected)
            assert model._post("/tokenize", content=text, parse_special=True)["tokens"] == expected
            assert model.generate(prompt, max_new_tokens=1).prompt_tokens == len(expected)


def test_four_bits_answer_and_say_how_fast(real_gguf):
    file = real_gguf / "Q4_K_M.gguf"
    with gguf_run.GgufModel(file, threads=1) as model:
        answer = model.generate(ASK, max_new_tokens=8)
        ids = model.generate([1, 2, 3], max_new_tokens=2)
        short = model.generate("What is 2 + 2?", max_new_tokens=24)
        times = model.timed("What is 2 + 2?", 24)
        result = benchmark.benchmark(model, new_tokens=4, runs=2)
    assert file.stat().st_size < 0.4 * (real_gguf / "BF16.gguf").stat().st_size
    assert len(answer.tokens) == 8 and answer.text and answer.prompt_tokens == 37 and ids.prompt_tokens == 3
    assert answer.first_token > 0 and answer.tokens_per_second > 0
    # exactly as many tokens as asked for, past the end of the answer
    assert len(times) == 25 and times == sorted(times) and len(short.tokens) < 24
    assert result.new_tokens == 4 and result.first_token > 0 and result.tokens_per_second > 0
    with pytest.raises(ValueError, match="closed"):
        model.chat("again")


def test_the_server_answers_our_own_client(real_gguf, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = real_gguf / "F16.gguf"
    answer = "The capital of France is Paris."
    with gguf_run.serve_gguf(file, port=0, threads=1) as address:
        assert address.startswith("http://127.0.0.1:") and address.endswith("/v1")
        teacher = cl.data.ServerTeacher(address, "smollm2", temperature=0, max_tokens=8, retries=0)
        assert teacher.generate([{"role": "user", "content": ASK}]) == answer
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is in use") as raised:
            with gguf_run.serve_gguf(file, port=port):
                pass
        assert raised.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionError):
        teacher.generate([{"role": "user", "content": ASK}])
    assert gguf_run.run_gguf(file, ASK, max_new_tokens=8, threads=1, mmap=False) == answer


def test_a_port_in_use_is_named_before_the_model_is_loaded(tiny_gguf):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is in use by another program; choose"):
            gguf_run.GgufModel(tiny_gguf, port=port)
    with pytest.raises(ValueError, match="port is 70000"):
        gguf_run.check_port(70000)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_gguf_is_reported(tiny_gguf, tmp_path, share):
    data = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(OSError, match="cut.gguf' is cut off: it has|damaged or cut off"):
        gguf_run.run_gguf(cut, "hi")


def test_what_is_no_gguf_is_reported(tmp_path):
    """By the head, which test_gguf_header damages in every way; llama.cpp itself says only that it failed."""
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(OSError, match=r"no GGUF file: it starts with b'PK"):
        gguf_run.run_gguf(tmp_path / "x.gguf", "hi")
    with pytest.raises(FileNotFoundError, match="no file"):
        gguf_run.run_gguf(tmp_path / "none.gguf", "hi")


def test_an_architecture_that_llama_cpp_does_not_know(tiny_gguf, tmp_path):
    path = tmp_path / "new.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lyama"))
    with pytest.raises(OSError, match="llama.cpp cannot load .*architecture"):
        gguf_run.GgufModel(path)


def test_prompts_that_cannot_be_answered(tiny_gguf):
    with gguf_run.GgufModel(tiny_gguf, context=128, threads=1) as model:
        for options, words in (
                ({"prompt": ""}, "prompt_or_messages is empty"),
                ({"prompt": "hi", "max_new_tokens": 0}, "max_new_tokens is 0"),
                ({"prompt": "x" * 500}, "exceeds the context of 128"),
                ({"prompt": [{"role": "king", "content": "x"}]}, "role is 'king'")):
            with pytest.raises(ValueError, match=words):
                model.generate(**options)


def test_wrong_numbers_and_a_missing_package_are_named(tiny_gguf, monkeypatch):
    with pytest.raises(ValueError, match="context is 0 and threads None; both must be at least 1"):
        gguf_run.GgufModel(tiny_gguf, context=0)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the package xllamacpp is not installed: pip install"):
        gguf_run.GgufModel(tiny_gguf)
