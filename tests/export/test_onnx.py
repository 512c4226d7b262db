"""ONNX folders: transformers' tokens in onnxruntime-genai, and nothing half-written."""
import errno
import json
import shutil

import pytest

from course_lib import runtime
from course_lib.export import onnx, runners
from course_lib.inference import benchmark
from tests.export.conftest import NEW_TOKENS
from tests.export.greedy import ASK, greedy, prompt_ids


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_onnx_agrees_with_transformers(real_onnx, real, references, questions):
    _, tokenizer = real
    korean = "안녕하세요! 12345 + 678 = ?\n\n  tabs\tand 🙂"
    with onnx.OnnxModel(real_onnx) as model:
        answers = [model.tokens(question, max_new_tokens=NEW_TOKENS) for question in questions]
        for prompt in (*questions[:3], korean):
            expected = prompt_ids(tokenizer, prompt)
            assert model.generate(prompt, max_new_tokens=1).prompt_tokens == len(expected)
        messages = [{"role": "user", "content": ASK}]
        assert model.chat(messages, max_new_tokens=8) == "The capital of France is Paris."
    assert runners.agreement(answers, references) >= 0.97


def test_the_benchmark_times_it(real_onnx):
    """Exactly as many tokens as asked for, past the end of the answer."""
    with onnx.OnnxModel(real_onnx) as model:
        short = model.generate("What is 2 + 2?", max_new_tokens=24)
        times = model.timed("What is 2 + 2?", 24)
        result = benchmark.benchmark(model, new_tokens=4, runs=2)
    assert len(times) == 25 and times == sorted(times) and len(short.tokens) < 24
    assert result.new_tokens == 4 and result.first_token > 0 and result.tokens_per_second > 0


def test_a_model_in_memory_is_written_without_a_word(tiny, tmp_path, capfd):
    model, tokenizer = tiny
    capfd.readouterr()
    onnx.to_onnx(model, tmp_path / "onnx", precision="fp32", tokenizer=tokenizer)
    with onnx.OnnxModel(tmp_path / "onnx", context=128) as runner:
        tokens = runner.tokens("hello", max_new_tokens=6)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert tokens == greedy(model, tokenizer, "hello", 6)


def test_an_unknown_architecture_is_named_and_remote_code_never_run(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "odd")
    witness = tmp_path / "it_ran"
    code = f"open({str(witness)!r}, 'w').close()\nclass Trojan: pass\n"
    (folder / "tokenization_trojan.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
    with pytest.raises(RuntimeError, match="conversion to ONNX failed: .*not currently supported"):
        onnx.to_onnx(folder, tmp_path / "onnx")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    remote = {"AutoTokenizer": ["tokenization_trojan.Trojan", "tokenization_trojan.Trojan"]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**tokenizer, "tokenizer_class": "Trojan", "auto_map": remote}))
    with pytest.raises(RuntimeError, match="conversion to ONNX failed: .*custom code"):
        onnx.to_onnx(folder, tmp_path / "onnx")
    assert not witness.exists()
    (folder / "config.json").write_text(json.dumps({**config, "architectures": None}))
    with pytest.raises(ValueError, match="names no architecture"):
        onnx.to_onnx(folder, tmp_path / "none")


def test_wrong_arguments_are_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="precision is 'int3'"):
        onnx.to_onnx(tiny[0], tmp_path / "onnx", precision="int3", tokenizer=tiny[1])
    assert names_in(tmp_path) == []


def test_a_full_disk_leaves_nothing_half_written(tiny_folder, tmp_path, monkeypatch, full_disk):
    monkeypatch.setattr(onnx, "run_module", full_disk)
    with pytest.raises(OSError, match="the disk is full: .*onnx' was not written") as raised:
        onnx.to_onnx(tiny_folder, tmp_path / "onnx")
    assert raised.value.errno == errno.ENOSPC and names_in(tmp_path) == []


def test_a_file_that_may_not_grow_ends_the_converter_cleanly(tiny_folder, tmp_path, files_stay_small):
    with pytest.raises((OSError, RuntimeError)), files_stay_small():
        onnx.to_onnx(tiny_folder, tmp_path / "onnx")
    assert names_in(tmp_path) == []


def test_a_folder_with_other_files_is_not_replaced(tiny_folder, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("Dear mother")
    with pytest.raises(FileExistsError, match="letters' is a folder with other files"):
        onnx.to_onnx(tiny_folder, tmp_path / "letters")
    with runtime.replacing(tmp_path / "onnx", mark="genai_config.json") as made:
        made.mkdir()
        (made / "genai_config.json").touch()
    with runtime.replacing(tmp_path / "onnx", mark="genai_config.json") as made:
        made.mkdir()
    assert names_in(tmp_path / "onnx") == [] and names_in(tmp_path / "letters") == ["to_mother.txt"]


def test_a_damaged_onnx_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="genai_config.json, model.onnx, tokenizer.json is missing"):
        onnx.OnnxModel(tmp_path)
    for name in ("genai_config.json", "model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(OSError, match="cannot read the ONNX model"):
        onnx.OnnxModel(tmp_path)
