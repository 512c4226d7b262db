"""Exports and what runs them: the same tokens as transformers, and clear errors with nothing half-written."""
import errno
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import nn

import course_lib as cl
from course_lib import (
    decode,
    deploy,
    exporting,
    folding,
    gguf_files,
    gguf_run,
    loading,
    onnx_files,
    runtime,
    toolchains,
)
from course_lib.gguf_header import GgufTensor

ROOT = Path(__file__).resolve().parent.parent
ASK = "What is the capital of France?"
PROMPTS, NEW_TOKENS = 12, 16


def prompt_ids(tokenizer, prompt):
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def greedy(model, tokenizer, prompt, count):
    """transformers' greedy continuation, without the token that ends it."""
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else prompt
    with torch.inference_mode():
        output = model.generate(torch.tensor([ids]), do_sample=False, temperature=1.0, top_p=1.0, top_k=50,
                                repetition_penalty=1.0, max_new_tokens=count, pad_token_id=tokenizer.pad_token_id)
    made = output[0, len(ids):].tolist()
    return made[:-1] if made[-1] == tokenizer.eos_token_id else made


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def questions():
    return [sample["question"] for sample in cl.data.load_qa("en", "test")][:PROMPTS]


@pytest.fixture(scope="session")
def references(real, questions):
    """transformers in fp32."""
    return [greedy(*real, question, NEW_TOKENS) for question in questions]


@pytest.fixture(scope="session")
def exports(real_folder, tmp_path_factory):
    """The real model as GGUF in BF16 (its own precision), Q8_0 and Q4_K_M, and as ONNX in fp32."""
    folder = tmp_path_factory.mktemp("exports")
    plain = deploy.to_gguf(real_folder, folder / "bf16.gguf", quantization="BF16")
    for quantization in ("F16", "Q8_0", "Q4_K_M"):
        deploy.to_gguf(plain, folder / f"{quantization}.gguf", quantization=quantization)
    deploy.to_onnx(real_folder, folder / "onnx", precision="fp32")
    assert left_behind(folder) == ["F16.gguf", "Q4_K_M.gguf", "Q8_0.gguf", "bf16.gguf", "onnx"]
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder, tmp_path_factory):
    """The tiny model as GGUF in F32."""
    return deploy.to_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf", quantization="F32")


# --- GGUF: what is written ---------------------------------------------------------------------------------------

def test_the_header_agrees_with_ggufs_reader(tiny_gguf):
    header, reader = deploy.read_gguf_header(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    assert header.size == tiny_gguf.stat().st_size and header.version == 3
    assert [(one.name, one.shape, one.type, one.size, one.offset) for one in header.tensors] == [
        (one.name, tuple(reversed(one.shape.tolist())), one.tensor_type.name, one.n_bytes, one.data_offset)
        for one in reader.tensors]
    assert header.metadata["llama.block_count"] == 2 and header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == 259  # an array of that length
    assert "<|im_start|>" in header.metadata["tokenizer.chat_template"]


def test_the_weights_arrive_unchanged(tiny, tiny_gguf):
    model, _ = tiny
    there = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    assert torch.equal(there["token_embd.weight"], model.model.embed_tokens.weight)
    assert torch.equal(there["blk.1.ffn_down.weight"], model.model.layers[1].mlp.down_proj.weight)
    assert torch.equal(there["blk.0.attn_norm.weight"], model.model.layers[0].input_layernorm.weight)
    assert "output.weight" not in there  # tied


@pytest.mark.parametrize("quantization", deploy.QUANTIZATIONS)
def test_every_quantization_can_be_made(tiny_gguf, tmp_path, quantization):
    path = deploy.to_gguf(tiny_gguf, tmp_path / "made.gguf", quantization=quantization)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    base = gguf_files.QUANTIZATIONS[quantization]
    assert types["blk.0.attn_q.weight"] == gguf_files.NARROW.get(base, base)  # 64 columns, so no block of 256
    assert types["blk.0.attn_norm.weight"] == "F32"
    kind = gguf.LlamaFileType[("ALL_" if quantization == "F32" else "MOSTLY_") + quantization]
    assert deploy.read_gguf_header(path).metadata["general.file_type"] == kind
    assert left_behind(tmp_path) == ["made.gguf"]


@pytest.mark.parametrize("kind, bound", [("Q8_0", 0.008), ("Q6_K", 0.02), ("Q5_K", 0.04), ("Q5_0", 0.05), ("Q4_K", 0.09),
                                         ("Q4_0", 0.1), ("Q3_K", 0.2), ("Q2_K", 0.3)])
def test_rows_are_rounded_as_the_format_says(kind, bound):
    weights = np.random.default_rng(0).standard_normal((48, 512)).astype(np.float32)
    packed = gguf_files.quantize_rows(weights, kind)
    back = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    assert np.linalg.norm(back - weights) < bound * np.linalg.norm(weights)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "F16", "BF16"])
def test_without_the_library_numpy_rounds_alike(kind, monkeypatch):
    weights = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    ours = gguf_files.quantize_rows(weights, kind)
    monkeypatch.setattr(gguf_files, "_library_function", lambda: None)
    theirs = gguf_files.quantize_rows(weights, kind)
    assert ours.dtype == theirs.dtype and np.mean(ours == theirs) > 0.99
    with pytest.raises(ValueError, match="Q4_K needs llama.cpp's quantizer.*Q8_0, Q5_1"):
        gguf_files.quantize_rows(np.zeros((1, 256), np.float32), "Q4_K")


def test_tensor_types_are_llama_cpps():
    """Against auto-round's copy of llama.cpp's rule, in a process of its own, since that package patches others."""
    names = ["token_embd.weight", *(f"blk.{layer}.{part}.weight" for layer in range(30) for part in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"))]
    metadata = {"general.architecture": "llama", "llama.block_count": 30, "llama.attention.head_count": 8,
                "llama.attention.head_count_kv": 2}
    header = deploy.GgufHeader(3, metadata, [GgufTensor(name, (256, 256), "BF16", 0, 0) for name in names], 0)
    wanted = ["Q4_K_M", "Q4_K_S", "Q5_K_M", "Q3_K_M", "Q3_K_L", "Q2_K", "Q6_K", "Q8_0", "Q4_0"]
    script = f"""
import json, gguf
from auto_round.export.export_to_gguf.gguf_dtype import GGUFDTypeSelector
settings, names = dict(num_hidden_layers=30, num_attention_heads=8, num_key_value_heads=2), {names}
types = {{}}
for quantization in {wanted}:
    choose = GGUFDTypeSelector(settings, gguf.LlamaFileType["MOSTLY_" + quantization], gguf.MODEL_ARCH.LLAMA,
                               has_tied_embeddings=True)
    types[quantization] = {{name: choose.select_qtype(name, 2).name for name in names}}
print(json.dumps(types))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    theirs = json.loads(result.stdout.splitlines()[-1])
    assert {quantization: deploy.tensor_types(header, quantization) for quantization in wanted} == theirs


def test_calibration_spares_the_columns_that_matter():
    generator = np.random.default_rng(2)
    weights, importance = generator.standard_normal((32, 256)).astype(np.float32), np.full(256, 0.01, np.float32)
    importance[::8] = 100.0
    errors = []
    for given in (None, importance):
        back = gguf.quants.dequantize(gguf_files.quantize_rows(weights, "Q4_K", given), gguf.GGMLQuantizationType.Q4_K)
        errors.append(float((np.square(back - weights) * importance).sum()))
    assert errors[1] < 0.8 * errors[0]


def test_importance_is_the_mean_square_of_a_layers_input(tiny):
    model, tokenizer = tiny
    seen = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    found = deploy.input_importance(model, tokenizer, ["ab", "cdef"])
    hook.remove()
    expected = torch.cat(seen).square().mean(0)
    assert np.allclose(found["model.layers.0.mlp.down_proj.weight"], expected.numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match="calibration must be a list"):
        deploy.input_importance(model, tokenizer, [])


def test_a_calibrated_export_runs(tiny, tmp_path):
    path = deploy.to_gguf(tiny[0], tmp_path / "c.gguf", quantization="Q4_0", tokenizer=tiny[1], calibration=["hello there"])
    assert len(deploy.run_gguf(path, "hi", max_new_tokens=2, context=128, threads=1)) >= 0
    with pytest.raises(ValueError, match="calibration needs a model that runs"):
        deploy.to_gguf(path, tmp_path / "d.gguf", calibration=["x"])


def test_a_quantized_file_is_not_quantized_again(exports, tmp_path):
    with pytest.raises(ValueError, match=r"quantized already \(Q8_0\)"):
        deploy.to_gguf(exports / "Q8_0.gguf", tmp_path / "again.gguf", quantization="Q4_0")
    assert left_behind(tmp_path) == []


# --- the same tokens ---------------------------------------------------------------------------------------------

def test_agreement_counts_up_to_the_first_difference():
    assert deploy.agreement([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) == 1.0
    assert deploy.agreement([[1, 9, 3]], [[1, 2, 3]]) == 0.5  # one equal, one not; what comes after is another text
    assert deploy.agreement([[9, 2, 3, 4]], [[1, 2, 3, 4]]) == 0.0
    assert deploy.agreement([[1]], [[1, 2, 3]]) == 0.5  # ended too early
    assert deploy.agreement([[1, 2, 3]], [[1]]) == 1.0
    for answers, references in (([[1]], []), ([[1]], [[]])):
        with pytest.raises(ValueError, match="one answer for each"):
            deploy.agreement(answers, references)


@pytest.mark.parametrize("name, least", [("F16.gguf", 0.97), ("bf16.gguf", 0.95), ("Q8_0.gguf", 0.90)])
def test_llama_cpp_agrees_with_transformers(exports, references, questions, name, least):
    with deploy.GgufModel(exports / name, threads=1) as model:
        answers = [model.tokens(question, max_new_tokens=NEW_TOKENS) for question in questions]
    assert deploy.agreement(answers, references) >= least


def test_onnx_agrees_with_transformers(exports, references, questions):
    with deploy.OnnxModel(exports / "onnx") as model:
        answers = [model.tokens(question, max_new_tokens=NEW_TOKENS) for question in questions]
    assert deploy.agreement(answers, references) >= 0.97


def test_both_tokenize_as_transformers_does(exports, real, questions):
    _, tokenizer = real
    korean = "안녕하세요! 12345 + 678 = ?\n\n  tabs\tand 🙂"
    with deploy.GgufModel(exports / "F16.gguf", threads=1) as one, deploy.OnnxModel(exports / "onnx") as other:
        for prompt in (*questions[:3], korean):
            expected = prompt_ids(tokenizer, prompt)
            assert one._post("/tokenize", content=tokenizer.decode(expected), parse_special=True)["tokens"] == expected
            for model in (one, other):
                assert model.generate(prompt, max_new_tokens=1).prompt_tokens == len(expected)


def test_four_bits_answer_and_say_how_fast(exports):
    with deploy.GgufModel(exports / "Q4_K_M.gguf", threads=1) as model:
        answer = model.generate(ASK, max_new_tokens=8)
        ids = model.generate([1, 2, 3], max_new_tokens=2)
    assert (exports / "Q4_K_M.gguf").stat().st_size < 0.4 * (exports / "bf16.gguf").stat().st_size
    assert len(answer.tokens) == 8 and answer.text and answer.prompt_tokens == 37 and ids.prompt_tokens == 3
    assert answer.first_token > 0 and answer.tokens_per_second > 0
    with pytest.raises(ValueError, match="closed"):
        model.chat("again")


@pytest.mark.parametrize("name", ("Q4_K_M.gguf", "onnx"))
def test_the_benchmark_times_each_runner(exports, name):
    """Exactly as many tokens as asked for, past the end of the answer."""
    with deploy.GgufModel(exports / name, threads=1) if name.endswith("gguf") else deploy.OnnxModel(exports / name) as model:
        short = model.generate("What is 2 + 2?", max_new_tokens=24)
        times = model.timed("What is 2 + 2?", 24)
        result = decode.benchmark(model, new_tokens=4, runs=2)
    assert len(times) == 25 and times == sorted(times) and len(short.tokens) < 24
    assert result.new_tokens == 4 and result.first_token > 0 and result.tokens_per_second > 0


def test_a_chat_of_one_call(exports):
    file = exports / "F16.gguf"
    assert deploy.run_gguf(file, ASK, max_new_tokens=8, threads=1, mmap=False) == "The capital of France is Paris."
    messages = [{"role": "user", "content": ASK}]
    assert deploy.run_onnx(exports / "onnx", messages, max_new_tokens=8) == "The capital of France is Paris."


def test_a_model_in_memory_with_a_merged_adapter(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="PeftModel; merge its adapter first"):
        deploy.to_gguf(adapted, tmp_path / "t.gguf", tokenizer=tokenizer)
    merged = cl.finetune.merge(adapted)
    deploy.to_gguf(merged, tmp_path / "t.gguf", quantization="F32", tokenizer=tokenizer)
    deploy.to_onnx(merged, tmp_path / "onnx", precision="fp32", tokenizer=tokenizer)
    expected = greedy(merged, tokenizer, "hello", 6)
    with deploy.GgufModel(tmp_path / "t.gguf", context=128, threads=1) as one, \
            deploy.OnnxModel(tmp_path / "onnx", context=128) as other:
        assert one.tokens("hello", max_new_tokens=6) == other.tokens("hello", max_new_tokens=6) == expected


def test_nothing_is_printed(tiny_folder, tmp_path, capfd):
    deploy.to_onnx(tiny_folder, tmp_path / "onnx")
    deploy.to_gguf(tiny_folder, tmp_path / "plain.gguf")
    deploy.run_gguf(tmp_path / "plain.gguf", "hi", max_new_tokens=2, context=64, threads=1)
    deploy.run_onnx(tmp_path / "onnx", "hi", max_new_tokens=2, context=64)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- the server --------------------------------------------------------------------------------------------------

def test_the_server_answers_our_own_client(exports, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with deploy.serve_gguf(exports / "F16.gguf", port=0, threads=1) as address:
        assert address.startswith("http://127.0.0.1:") and address.endswith("/v1")
        teacher = cl.synthesis.ServerTeacher(address, "smollm2", temperature=0, max_tokens=8, retries=0)
        assert teacher.generate([{"role": "user", "content": ASK}]) == "The capital of France is Paris."
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is in use") as raised:
            with deploy.serve_gguf(exports / "F16.gguf", port=port):
                pass
        assert raised.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionError):
        teacher.generate([{"role": "user", "content": ASK}])


def test_a_port_in_use_is_named_before_the_model_is_loaded(tiny_gguf):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} on 127.0.0.1 is in use by another program; choose another"):
            deploy.GgufModel(tiny_gguf, port=port)
    with pytest.raises(ValueError, match="port is 70000"):
        gguf_run.check_port(70000)


# --- bad input ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_gguf_is_reported(tiny_gguf, tmp_path, share):
    data = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(OSError, match="cut.gguf' is cut off: it has|damaged or cut off"):
        deploy.run_gguf(cut, "hi")


def test_what_is_no_gguf_is_reported(tmp_path, tiny_gguf):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(OSError, match=r"no GGUF file: it starts with b'PK"):
        deploy.run_gguf(path, "hi")
    path.write_bytes(b"")
    with pytest.raises(OSError, match="no GGUF file"):
        deploy.run_gguf(path, "hi")
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(64))
    with pytest.raises(OSError, match="version 9; known are 2 and 3"):
        deploy.read_gguf_header(path)
    path.write_bytes(tiny_gguf.read_bytes()[:8] + b"\xff" * 16)
    with pytest.raises(OSError, match="damaged.*counts"):
        deploy.read_gguf_header(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        deploy.run_gguf(tmp_path / "none.gguf", "hi")


def test_an_architecture_that_llama_cpp_does_not_know(tiny_gguf, tmp_path):
    path = tmp_path / "new.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lyama"))
    with pytest.raises(OSError, match="llama.cpp cannot load .*architecture"):
        deploy.GgufModel(path)


@pytest.mark.parametrize("missing, words", [("tokenizer.json", "holds no tokenizer"), ("config.json", "holds no config.json"),
                                            ("model.safetensors", r"holds no \*.safetensors .*pickles")])
@pytest.mark.parametrize("export", [deploy.to_gguf, deploy.to_onnx])
def test_a_folder_with_something_missing(tiny_folder, tmp_path, missing, words, export):
    folder = shutil.copytree(tiny_folder, tmp_path / "partial")
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=words):
        export(folder, tmp_path / "made")
    assert left_behind(tmp_path) == ["partial"]


def test_a_tokenizer_can_be_given_for_a_folder_without_one(tiny, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "partial")
    (folder / "tokenizer.json").unlink()
    path = deploy.to_gguf(folder, tmp_path / "t.gguf", tokenizer=tiny[1], quantization="F16")
    assert deploy.read_gguf_header(path).metadata["tokenizer.ggml.tokens"] == 259


@pytest.mark.parametrize("call, words", [
    (lambda tiny, path: deploy.to_gguf(tiny[0], path, quantization="Q4", tokenizer=tiny[1]), "quantization is 'Q4'; .*Q4_K_M"),
    (lambda tiny, path: deploy.to_onnx(tiny[0], path, precision="int3", tokenizer=tiny[1]), "precision is 'int3'"),
    (lambda tiny, path: deploy.to_gguf(tiny[0], path), "tokenizer is missing"),
    (lambda tiny, path: deploy.to_gguf("owner/model", path), "hub id 'owner/model'; load it first"),
    (lambda tiny, path: deploy.to_gguf(nn.Linear(2, 2), path), "is a Linear; give a folder"),
])
def test_wrong_arguments_are_named(tiny, tmp_path, call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny, tmp_path / "made")
    assert left_behind(tmp_path) == []


def test_a_quantized_model_is_refused(tiny_folder, tmp_path):
    model, tokenizer = loading.load(tiny_folder, "nf4")
    with pytest.raises(ValueError, match="the model is quantized .*second time"):
        deploy.to_gguf(model, tmp_path / "t.gguf", tokenizer=tokenizer)


def test_an_unknown_architecture_is_named(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OddForCausalLM"]}))
    with pytest.raises(ValueError, match="no architecture 'OddForCausalLM'"):
        deploy.to_gguf(folder, tmp_path / "t.gguf")
    with pytest.raises(RuntimeError, match="conversion to ONNX failed: .*not currently supported"):
        deploy.to_onnx(folder, tmp_path / "onnx")
    assert left_behind(tmp_path) == ["odd"]


def test_remote_code_is_never_run(tiny_folder, tmp_path):
    folder, witness = shutil.copytree(tiny_folder, tmp_path / "trojan"), tmp_path / "it_ran"
    (folder / "tokenization_trojan.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass Trojan: pass\n")
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "tokenizer_class": "Trojan",
              "auto_map": {"AutoTokenizer": ["tokenization_trojan.Trojan", "tokenization_trojan.Trojan"]}}
    path.write_text(json.dumps(config))
    for export, name in ((deploy.to_gguf, "t.gguf"), (deploy.to_onnx, "onnx")):
        try:
            export(folder, tmp_path / name)
        except (OSError, ValueError, RuntimeError):
            pass
    assert not witness.exists()


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["plain", "quantize", "onnx"])
def test_a_full_disk_leaves_nothing_half_written(tiny_folder, tmp_path, monkeypatch, where):
    target = tmp_path / "made"
    if where == "quantize":
        monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    else:
        monkeypatch.setattr(gguf_files if where == "plain" else onnx_files, "run_module", full)
    export = deploy.to_onnx if where == "onnx" else deploy.to_gguf
    with pytest.raises(OSError, match="the disk is full: .*made' was not written") as raised:
        export(tiny_folder, target)
    assert raised.value.errno == errno.ENOSPC and left_behind(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size there")
@pytest.mark.parametrize("export, name", [(deploy.to_gguf, "t.gguf"), (deploy.to_onnx, "onnx")])
def test_a_file_that_may_not_grow_ends_the_converter_cleanly(tiny_folder, tmp_path, export, name):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            export(tiny_folder, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left_behind(tmp_path) == []


def test_an_earlier_export_stays_when_the_next_one_fails(tiny_folder, tiny_gguf, tmp_path, monkeypatch):
    target = tmp_path / "t.gguf"
    shutil.copyfile(tiny_gguf, target)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OSError, match="the disk is full"):
        deploy.to_gguf(tiny_gguf, target, quantization="Q8_0")
    assert target.read_bytes() == tiny_gguf.read_bytes() and left_behind(tmp_path) == ["t.gguf"]


def test_a_folder_with_other_files_is_not_replaced(tiny_folder, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_mother.txt").write_text("Dear mother")
    with pytest.raises(FileExistsError, match="letters' is a folder with other files"):
        deploy.to_onnx(tiny_folder, tmp_path / "letters")
    with exporting.replacing(tmp_path / "onnx", mark="genai_config.json") as made:
        made.mkdir()
        (made / "genai_config.json").touch()
    with exporting.replacing(tmp_path / "onnx", mark="genai_config.json") as made:
        made.mkdir()
    assert left_behind(tmp_path / "onnx") == [] and left_behind(tmp_path / "letters") == ["to_mother.txt"]


def test_a_damaged_onnx_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="genai_config.json, model.onnx, tokenizer.json is missing"):
        deploy.run_onnx(tmp_path, "hi")
    for name in ("genai_config.json", "model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(OSError, match="cannot read the ONNX model"):
        deploy.run_onnx(tmp_path, "hi")


@pytest.mark.parametrize("options, words", [
    ({"prompt": ""}, "prompt_or_messages is empty"), ({"prompt": "hi", "max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"prompt": "x" * 500}, "exceeds the context of 128"), ({"prompt": [{"role": "king", "content": "x"}]}, "role is 'king'"),
])
def test_prompts_that_cannot_be_answered(tiny_gguf, options, words):
    with deploy.GgufModel(tiny_gguf, context=128, threads=1) as model:
        with pytest.raises(ValueError, match=words):
            model.generate(**options)


@pytest.mark.parametrize("package, call", [
    ("xllamacpp", lambda: deploy.GgufModel("x.gguf")), ("executorch", lambda: deploy.ExecutorchModel("x.pte", None))])
def test_a_package_that_is_not_installed_is_named(monkeypatch, package, call):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=f"the package {package} is not installed: pip install"):
        call()


# --- folding -----------------------------------------------------------------------------------------------------

def randomized(model):
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    return model


def model_of(kind, **changes):
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, **changes}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    return randomized(getattr(transformers, f"{kind}ForCausalLM")(config).eval())


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma2", "Phi3"])
@pytest.mark.parametrize("tied", [False, True])
def test_folded_norms_change_nothing(kind, tied):
    model = model_of(kind, tie_word_embeddings=tied)
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    folded = folding.fold_norms(model)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, folded(ids).logits, atol=1e-5)
    norms = [layer.input_layernorm.weight for layer in folded.model.layers]
    assert all(torch.equal(weight, torch.full_like(weight, 0.0 if kind == "Gemma2" else 1.0)) for weight in norms)
    assert torch.equal(folded.model.norm.weight, model.model.norm.weight) == tied
    assert model.model.layers[0].input_layernorm.weight.std() > 0  # the model itself stays


def test_the_real_model_folds(real):
    model, tokenizer = real
    folded, ids = deploy.fold_norms(model), torch.tensor([prompt_ids(tokenizer, ASK)])
    with torch.inference_mode():
        expected, found = model(ids).logits, folded(ids).logits
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
    assert greedy(folded, tokenizer, ASK, 8) == greedy(model, tokenizer, ASK, 8)


def test_what_cannot_be_folded_is_named(tiny_folder):
    with pytest.raises(ValueError, match="LayerNorm|has none of the linear layers|has no"):
        folding.fold_norms(model_of("Phi", intermediate_size=64))
    with pytest.raises(ValueError, match="quantized"):
        folding.fold_norms(loading.load(tiny_folder, "nf4")[0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_folds_as_torch_does_it(bias, groups):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.train()(torch.randn(8, 6, 5, 5) * 3 + 1)
    norm.eval()
    images = torch.randn(2, 4, 9, 9)
    folded = deploy.fold_batch_norm(conv, norm)
    theirs = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm)
    assert torch.allclose(folded(images), norm(conv(images)), atol=1e-5)
    assert torch.allclose(folded.weight, theirs.weight, atol=1e-6) and torch.allclose(folded.bias, theirs.bias, atol=1e-6)


def test_a_batch_norm_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="batch_norm has 5 channels, but conv gives 6"):
        deploy.fold_batch_norm(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match="no running statistics"):
        deploy.fold_batch_norm(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))


# --- mapping -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["safetensors", "gguf"])
def test_a_mapped_file_takes_no_memory_of_its_own(real_folder, exports, name):
    path = real_folder / "model.safetensors" if name == "safetensors" else exports / "bf16.gguf"
    figures, size = deploy.memory_map_figures(path), path.stat().st_size / 1e6
    assert list(figures.index) == ["mapped", "read"] and (figures.open_s > 0).all()
    assert list(figures.columns) == ["open_s", "open_mb", "used_mb", "anonymous_mb"]
    if sys.platform == "linux":
        saved = figures.anonymous_mb["read"] - figures.anonymous_mb["mapped"]
        assert 0.8 * size < saved < 2.2 * size
        if name == "safetensors":  # llama.cpp asks for all pages while it opens (MAP_POPULATE), so there they are equal
            assert figures.open_mb["mapped"] < figures.open_mb["read"]


def test_files_that_cannot_be_mapped_are_named(tmp_path):
    with pytest.raises(ValueError, match="must end in .gguf or .safetensors"):
        deploy.memory_map_figures(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match="no file"):
        deploy.memory_map_figures(tmp_path / "model.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"123456789")
    with pytest.raises((OSError, RuntimeError)):
        deploy.memory_map_figures(tmp_path / "model.safetensors")


# --- ExecuTorch --------------------------------------------------------------------------------------------------

def test_executorch_gives_the_same_tokens(tiny, tmp_path, capfd):
    model, tokenizer = tiny
    path = deploy.to_executorch(model, tmp_path / "tiny.pte", max_length=64)
    with deploy.ExecutorchModel(path, tokenizer) as runner:
        first, second = (runner.tokens(prompt, max_new_tokens=6) for prompt in ("hello", "ab"))
        assert runner.generate("hello", max_new_tokens=6).tokens_per_second > 0
    assert first == greedy(model, tokenizer, "hello", 6) and second == greedy(model, tokenizer, "ab", 6)
    assert deploy.run_executorch(path, tokenizer, "hello", 6) == tokenizer.decode(first, skip_special_tokens=True).strip()
    assert left_behind(tmp_path) == ["tiny.pte"] and model.generation_config.cache_implementation is None
    assert "cpuinfo" not in capfd.readouterr().err  # the runtime looks for an ARM processor, and would say so in a notebook
    with pytest.raises(ValueError, match="max_length is 9999"):
        deploy.to_executorch(model, tmp_path / "x.pte", max_length=9999)
    with pytest.raises(FileNotFoundError):
        deploy.ExecutorchModel(tmp_path / "none.pte", tokenizer)
    (tmp_path / "bad.pte").write_bytes(b"no program" * 100)
    with pytest.raises(OSError, match="no ExecuTorch program"):
        deploy.ExecutorchModel(tmp_path / "bad.pte", tokenizer)


# --- commands ----------------------------------------------------------------------------------------------------

def test_tensorrt_llm_commands():
    plain = deploy.tensorrt_llm_commands("Qwen/Qwen2.5-1.5B-Instruct")
    assert "trtllm-serve Qwen/Qwen2.5-1.5B-Instruct --host" in plain and "hf_ptq" not in plain
    small = deploy.tensorrt_llm_commands("Qwen/Qwen2.5-1.5B-Instruct", precision="fp8", tensor_parallel=2, port=9000)
    assert "--qformat fp8" in small and "--tp_size 2" in small and "127.0.0.1:9000:9000" in small
    assert "trtllm-serve checkpoints/Qwen2.5-1.5B-Instruct-fp8" in small and "free_gpu_memory_fraction" in small


@pytest.mark.parametrize("device, ending, serves", [("cuda", "so", True), ("android", "tar", False), ("webgpu", "wasm", False)])
def test_mlc_commands(device, ending, serves):
    lines = deploy.mlc_commands("HuggingFaceTB/SmolLM2-135M-Instruct", device=device, context=2048)
    for step in ("convert_weight", "gen_config", "compile"):
        assert f"mlc_llm {step} d" in lines
    assert "--conv-template chatml" in lines and "--context-window-size 2048" in lines and f"{device}.{ending}" in lines
    assert ("mlc_llm serve" in lines) == serves


@pytest.mark.skipif(sys.platform == "win32", reason="no bash there")
def test_the_commands_are_a_shell_script():
    for script in (deploy.tensorrt_llm_commands("a/b", precision="int4_awq"), deploy.mlc_commands("a/qwen-b")):
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False).stderr == ""


@pytest.mark.parametrize("call, words", [
    (lambda: deploy.tensorrt_llm_commands("x; rm -rf /"), "a hub id looks like"),
    (lambda: deploy.mlc_commands("a/b\nc"), "a hub id looks like"),
    (lambda: deploy.tensorrt_llm_commands("a/b", precision="int4"), "precision is 'int4'"),
    (lambda: deploy.tensorrt_llm_commands("a/b", port=0), "port 0"),
    (lambda: deploy.mlc_commands("a/qwen", quantization="q8"), "quantization is 'q8'"),
    (lambda: deploy.mlc_commands("a/qwen", device="toaster"), "device is 'toaster'"),
    (lambda: deploy.mlc_commands("a/unheard-of"), "template: none is known"),
    (lambda: deploy.mlc_commands("a/qwen", template="x y"), "template is 'x y'"),
    (lambda: deploy.missing_tools("vllm"), "stack is 'vllm'")])
def test_commands_for_nothing_sensible_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(toolchains.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchains, "find_spec", lambda name: None)
    assert deploy.missing_tools("mlc_llm") == "mlc_llm needs the package mlc_llm, which this machine does not have"
    assert deploy.missing_tools("tensorrt_llm") == ("tensorrt_llm needs the package tensorrt_llm (or docker) and an NVIDIA GPU "
                                                    "with its driver, which this machine does not have")
    runtime.set_language("ko")
    assert deploy.missing_tools("mlc_llm") == "mlc_llm: mlc_llm 패키지가 필요하지만 이 컴퓨터에는 없습니다"
    assert deploy.missing_tools("tensorrt_llm") == (
        "tensorrt_llm: tensorrt_llm 패키지(또는 docker)와 드라이버가 설치된 NVIDIA GPU가 필요하지만 이 컴퓨터에는 없습니다")
    monkeypatch.setattr(toolchains.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert deploy.missing_tools("mlc_llm") is None and deploy.missing_tools("tensorrt_llm") is None
