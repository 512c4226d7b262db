"""ExecuTorch: transformers' tokens from a `.pte` file, and damaged files by name."""
import pytest

from course_lib import loading, runtime
from course_lib.export import executorch
from tests.export.greedy import greedy


def test_executorch_gives_the_same_tokens(tiny, tmp_path, capfd):
    model, tokenizer = tiny
    path = executorch.to_executorch(model, tmp_path / "tiny.pte", max_length=64)
    with executorch.ExecutorchModel(path, tokenizer) as runner:
        for prompt in ("hello", "ab"):
            answer = runner.generate(prompt, max_new_tokens=6)
            assert answer.tokens == greedy(model, tokenizer, prompt, 6) and answer.tokens_per_second > 0
            assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pte"]
    assert model.generation_config.cache_implementation is None
    # the runtime looks for an ARM processor, and would say so in a notebook
    assert "cpuinfo" not in capfd.readouterr().err


def test_what_cannot_be_exported_or_read_is_named(tiny, tiny_folder, tmp_path, monkeypatch):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="max_length is 9999"):
        executorch.to_executorch(model, tmp_path / "x.pte", max_length=9999)
    with pytest.raises(ValueError, match="the model is quantized .*second time"):
        executorch.to_executorch(loading.load(tiny_folder, "nf4")[0], tmp_path / "x.pte")
    with pytest.raises(FileNotFoundError):
        executorch.ExecutorchModel(tmp_path / "none.pte", tokenizer)
    (tmp_path / "bad.pte").write_bytes(b"no program" * 100)
    with pytest.raises(OSError, match="no ExecuTorch program"):
        executorch.ExecutorchModel(tmp_path / "bad.pte", tokenizer)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="the package executorch is not installed: pip install"):
        executorch.ExecutorchModel("x.pte", None)
