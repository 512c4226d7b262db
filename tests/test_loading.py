"""Loading and chatting: every precision, every error a learner meets; the real model where it matters."""
import copy
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time

import pytest
import torch

from course_lib import loading
from course_lib.models import memory

# --- load

def test_the_default_model_answers_and_stops_at_the_end_of_its_turn(real, capsys):
    model, tokenizer = real
    assert model.num_parameters() == 134_515_008
    answer = loading.chat(model, tokenizer, "What is the capital of France?", stream=True, max_new_tokens=100)
    assert answer == "The capital of France is Paris."
    assert capsys.readouterr().out.strip() == answer, "streaming prints what is returned"


def test_a_warm_load_is_quick(real):
    start = time.perf_counter()
    loading.load()
    assert time.perf_counter() - start < 10  # 0.5 s here; the bound only catches a conversion at every load


@pytest.mark.parametrize("precision, dtype", [
    ("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16), ("int8", torch.int8),
    ("nf4", torch.uint8), ("fp4", torch.uint8)])
def test_every_precision_loads_and_generates(tiny_folder, precision, dtype):
    model, tokenizer = loading.load(tiny_folder, precision)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == dtype
    assert not model.training
    loading.chat(model, tokenizer, "hello", max_new_tokens=3)


def test_double_quantization_can_be_switched_off(tiny_folder):
    for flag in (True, False):
        model, _ = loading.load(tiny_folder, "nf4", double_quant=flag)
        assert model.model.layers[0].mlp.up_proj.weight.quant_state.nested == flag


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_can_be_chosen(tiny_folder, attention):
    model, _ = loading.load(tiny_folder, attn_implementation=attention)
    assert model.config._attn_implementation == attention


def test_int8_says_nothing(tiny_folder, capfd, caplog):
    model, tokenizer = loading.load(tiny_folder, "int8")
    loading.chat(model, tokenizer, "Hi", max_new_tokens=4)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.records) == ("", "", [])


@pytest.mark.parametrize("arguments, error, words", [
    ({"precision": "int2"}, ValueError, "precision is 'int2'; .* one of fp32, fp16, bf16, int8, nf4, fp4"),
    ({"attn_implementation": "flash"}, ValueError, "attn_implementation is 'flash'"),
    ({"device": "gpu"}, ValueError, "device is 'gpu'"),
    ({"name": "no_such_folder"}, LookupError, "no_such_folder"),
])
def test_bad_arguments_are_named(tiny_folder, arguments, error, words):
    with pytest.raises(error, match=words):
        loading.load(**{"name": tiny_folder, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_named(tiny_folder):
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        loading.load(tiny_folder, device="cuda")


def test_too_large_is_refused_before_weights_are_read(tiny_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_folder, tmp_path / "no_weights")
    (folder / "model.safetensors").unlink()
    free = {"bytes": 0}
    monkeypatch.setattr(memory, "free_memory", lambda device: free["bytes"])
    with pytest.raises(MemoryError, match=r"even 'nf4' takes 0\.00 GB: choose a smaller model"):
        loading.load(folder, "fp32")
    config = loading.load(tiny_folder, "fp32", force=True)[0].config
    free["bytes"] = memory.estimate_memory(config, "int8", context=1024).total
    with pytest.raises(MemoryError, match="fp32 takes about .* are free on cpu; 'int8' would fit .*force"):
        loading.load(folder, "fp32")
    assert loading.load(tiny_folder, "fp32", force=True)


def test_a_truncated_folder_is_named(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(OSError, match="cannot read a model from the folder .*cut"):
        loading.load(folder)


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(OSError, match="cannot read a model from the folder"):
        loading.load(tmp_path)


def test_remote_code_is_never_run(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "trojan")
    witness = tmp_path / "it_ran"
    (folder / "modeling_trojan.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass Trojan: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="trojan", auto_map={"AutoConfig": "modeling_trojan.Trojan",
                                                 "AutoModelForCausalLM": "modeling_trojan.Trojan"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((OSError, ValueError)):
        loading.load(folder)
    assert not witness.exists()


def test_a_quantized_folder_loads_in_a_process_of_its_own(tiny, tmp_path):
    """`load` itself teaches transformers our 4-bit format."""
    from course_lib.models.int4 import Int4Linear, replace_layers

    model, tokenizer = tiny
    weights = model.model.layers[0].mlp.up_proj.weight.detach()
    replace_layers(model, {"model.layers.0.mlp.up_proj": Int4Linear.from_weights(weights)}, "rtn")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = ("import sys, course_lib as cl; model, _ = cl.load(sys.argv[1]);"
            "print(type(model.model.layers[0].mlp.up_proj).__name__)")
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Int4Linear", done.stderr
    with pytest.raises(ValueError, match=r"precision is 'nf4', but .* is quantized already \(course_int4\)"):
        loading.load(tmp_path, "nf4")


def test_what_must_not_be_quantized_is_refused(tiny, tiny_folder):
    model, tokenizer = tiny
    loading.refuse_quantized(model, "that is no use")
    loading.check_plain_model(model, tokenizer)
    quantized, _ = loading.load(tiny_folder, "nf4")
    with pytest.raises(ValueError, match=r"is quantized \(bitsandbytes\), and that is no use; load it in"):
        loading.refuse_quantized(quantized, "that is no use")
    with pytest.raises(ValueError, match="would be rounded a second time"):
        loading.check_plain_model(quantized, tokenizer)
    with pytest.raises(ValueError, match="tokenizer is missing"):
        loading.check_plain_model(model, None)
    with pytest.raises(ValueError, match="model_or_folder is a int; give a folder"):
        loading.check_plain_model(3, tokenizer)


def test_an_adapter_is_merged_first(tiny):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="model_or_folder is a PeftModelForCausalLM; merge its adapter"):
        loading.check_plain_model(adapted, tokenizer)
    with pytest.raises(ValueError, match="the model has an adapter that is not merged"):
        loading.check_plain_model(model, tokenizer)


# --- the hub, played by a server on loopback

class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for a gated and for an unknown model."""

    def do_GET(self):
        gated = "/gated/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A function that points huggingface_hub at an address, with an empty cache and no pauses."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    def use(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)

    return use


@pytest.fixture
def hub_address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_gated_model_says_how_to_get_access(hub, hub_address):
    hub(hub_address)
    with pytest.raises(PermissionError, match="gated/model is gated: accept its licence .* HF_TOKEN"):
        loading.load("gated/model")


def test_an_unknown_model_is_named(hub, hub_address):
    hub(hub_address)
    with pytest.raises(LookupError, match="no model 'nobody/nothing', or it is private"):
        loading.load("nobody/nothing")


def test_an_unreachable_hub_is_named(hub):
    hub("http://127.0.0.1:9")
    words = "the model hub cannot be reached, and owner/model is not in its local cache"
    with pytest.raises(ConnectionError, match=words):
        loading.load("owner/model")


# --- chat

def test_chat_takes_messages_and_a_system_prompt(tiny):
    model, tokenizer = tiny
    short = {"max_new_tokens": 12}
    system = [{"role": "system", "content": "You are a pirate."}]
    user = [{"role": "user", "content": "hello"}]
    plain = loading.chat(model, tokenizer, "hello", **short)
    pirate = loading.chat(model, tokenizer, "hello", system="You are a pirate.", **short)
    assert plain == loading.chat(model, tokenizer, user, **short)
    assert pirate == loading.chat(model, tokenizer, system + user, **short)
    assert plain != pirate


def test_greedy_ignores_the_models_generation_config_and_leaves_it(tiny):
    model, tokenizer = tiny
    plain = loading.chat(model, tokenizer, "hello", max_new_tokens=12)
    loud = {"do_sample": True, "num_beams": 3, "temperature": 9.0, "top_k": 3, "top_p": 0.3, "min_p": 0.2,
            "typical_p": 0.4, "repetition_penalty": 2.0, "no_repeat_ngram_size": 2}
    assert loud.keys() == loading.GREEDY.keys()
    model.generation_config.update(**loud)
    before = copy.deepcopy(model.generation_config.to_dict())
    assert loading.chat(model, tokenizer, "hello", max_new_tokens=12) == plain
    assert model.generation_config.to_dict() == before


def test_sampling_is_repeatable_by_its_seed(tiny):
    from course_lib.runtime import set_seed

    def draw(seed):
        set_seed(seed)
        return loading.chat(*tiny, "hello", max_new_tokens=12, do_sample=True, temperature=1.5, top_p=0.9,
                            top_k=100)

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("prompt, arguments, words", [
    ("", {}, "prompt_or_messages is empty"), ("  ", {}, "prompt_or_messages is empty"),
    ([], {}, "prompt_or_messages is empty"),
    ([{"role": "human", "content": "hi"}], {}, "role is 'human'"),
    ([{"content": "hi"}], {}, "'role' and 'content'"),
    ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {"system": "c"}, "keep one of"),
    ("hi", {"temperature": 0.7}, "temperature given without do_sample=True"),
    ("hi", {"top_p": 0.9}, "top_p given without"),
    ("hi", {"do_sample": True, "temperature": 0}, "temperature is 0"),
    ("hi", {"do_sample": True, "top_p": 1.5}, "top_p is 1.5"),
    ("hi", {"do_sample": True, "top_k": -1}, "top_k is -1"),
    ("hi", {"max_new_tokens": 0}, "max_new_tokens is 0"),
])
def test_bad_prompts_and_sampling_are_named(tiny, prompt, arguments, words):
    with pytest.raises(ValueError, match=words):
        loading.chat(*tiny, prompt, **arguments)
