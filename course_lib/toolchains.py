"""Commands for two deployment stacks that are not installed with the course: TensorRT-LLM and MLC-LLM.

TensorRT-LLM needs an NVIDIA GPU under Linux; MLC-LLM's packages are on no package index. What to type there is written out
here for a given model, as the documentation had it in 2026, and nothing runs it. Shown in lesson 08.

Sources:
    https://nvidia.github.io/TensorRT-LLM/quick-start-guide.html, …/installation/installation-guide.html
    https://github.com/NVIDIA/Model-Optimizer/blob/main/examples/hf_ptq/README.md (quantization)
    https://llm.mlc.ai/docs/install/mlc_llm.html, …/compilation/compile_models.html, …/deploy/rest.html
"""
from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec

from .runtime import check_choice, text

TRT_PRECISIONS = ("bf16", "fp8", "nvfp4", "int4_awq")
MLC_QUANTIZATIONS = ("q0f16", "q0f32", "q3f16_1", "q4f16_1", "q4f32_1", "q4f16_awq")
MLC_DEVICES = {"cuda": "so", "metal": "so", "vulkan": "so", "android": "tar", "iphone": "tar", "webgpu": "wasm"}
_MLC_TEMPLATES = {"qwen": "qwen2", "llama-3": "llama-3", "llama-2": "llama-2", "tinyllama": "tinyllama_v1_0", "phi-3": "phi-3",
                  "phi-4": "phi-4", "gemma-3": "gemma3_instruction", "gemma": "gemma_instruction",
                  "mistral": "mistral_default", "smollm": "chatml"}
_TOOLS = {"tensorrt_llm": ("trtllm-serve", "docker"), "mlc_llm": ("mlc_llm",)}


def tensorrt_llm_commands(
    model_id: str, *, precision: str = "bf16", tensor_parallel: int = 1, max_tokens: int = 4096, port: int = 8000,
) -> str:
    """The shell commands that serve a hub model with TensorRT-LLM, with OpenAI's interface; the server is only on this machine.

    Args:
        precision: "bf16" serves the weights as they are; "fp8" (Hopper, Ada), "nvfp4" (Blackwell) and "int4_awq" are made
            with NVIDIA's Model Optimizer first.
        tensor_parallel: GPUs that share each layer.
        max_tokens: of a request, prompt and answer together.

    Raises:
        ValueError: no hub id, an unknown precision, a number out of range.
    """
    name = _hub_name(model_id)
    check_choice("precision", precision, TRT_PRECISIONS)
    if tensor_parallel < 1 or max_tokens < 1 or not 0 < port < 65536:
        raise ValueError(f"tensor_parallel is {tensor_parallel}, max_tokens {max_tokens} and port {port}; the first two must "
                         "be at least 1, the port from 1 to 65535")
    model, steps = model_id, []
    if precision != "bf16":
        model = f"checkpoints/{name}-{precision}"
        steps = ["# quantize once; the result is a folder of safetensors",
                 "git clone https://github.com/NVIDIA/Model-Optimizer && pip install -U 'nvidia-modelopt[hf]'",
                 "pip install -r Model-Optimizer/examples/hf_ptq/requirements.txt",
                 f"python Model-Optimizer/examples/hf_ptq/hf_ptq.py --pyt_ckpt_path {model_id} --qformat {precision} \\\n"
                 f"    --kv_cache_qformat none --export_path {model}", ""]
    config = ["kv_cache_config:", "  free_gpu_memory_fraction: 0.9", "cuda_graph_config:", "  enable_padding: true"]
    return "\n".join([
        "# in NVIDIA's container, which has everything; x.y.z: a tag from https://catalog.ngc.nvidia.com",
        f"docker run --rm -it --ipc host --gpus all --ulimit memlock=-1 --ulimit stack=67108864 -p 127.0.0.1:{port}:{port} \\\n"
        '    -v "$PWD":/work -w /work nvcr.io/nvidia/tensorrt-llm/release:x.y.z', "", *steps,
        "cat > config.yml <<'END'", *config, "END",
        f"trtllm-serve {model} --host 0.0.0.0 --port {port} --tp_size {tensor_parallel} --max_seq_len {max_tokens} \\\n"
        "    --config config.yml", "",
        "# from another terminal", _curl(port, model), ""])


def mlc_commands(
    model_id: str, *, quantization: str = "q4f16_1", device: str = "cuda", context: int = 4096,
    template: str | None = None, port: int = 8000,
) -> str:
    """The shell commands that convert, compile and (on a computer) serve a hub model with MLC-LLM.

    Args:
        quantization: MLC's code qAfB_N: A bits for a weight, B for an activation; "q0" keeps the weights.
        device: what the library is compiled for; "android", "iphone" and "webgpu" libraries go into an app or a page.
        context: tokens of prompt and answer together; a phone has memory for less than a computer.
        template: the name of the conversation template; by default the one that belongs to the model's family.

    Raises:
        ValueError: no hub id, an unknown quantization or device, or a family without a known template.
    """
    name = _hub_name(model_id)
    check_choice("quantization", quantization, MLC_QUANTIZATIONS)
    check_choice("device", device, MLC_DEVICES)
    if template is None:
        template = next((value for key, value in _MLC_TEMPLATES.items() if key in name.lower()), None)
        if template is None:
            raise ValueError(f"template: none is known for {model_id!r}; name one that mlc_llm gen_config --help lists")
    if not re.fullmatch(r"[\w.-]+", template, re.ASCII):
        raise ValueError(f"template is {template!r}; it must be a name, such as 'chatml'")
    built = f"dist/{name}-{quantization}-MLC"
    library = f"dist/libs/{name}-{quantization}-{device}.{MLC_DEVICES[device]}"
    wheels = {"cuda": "mlc-llm-nightly-cu130 mlc-ai-nightly-cu130"}.get(device, "mlc-llm-nightly-cpu mlc-ai-nightly-cpu")
    lines = [
        "# in an environment of its own; iphone needs a Mac with Xcode, webgpu a build from source",
        f"python -m pip install --pre -U -f https://mlc.ai/wheels {wheels}", "",
        "mkdir -p dist/models dist/libs && git lfs install",
        f"git clone https://huggingface.co/{model_id} dist/models/{name}",
        f"mlc_llm convert_weight dist/models/{name}/ --quantization {quantization} -o {built}",
        f"mlc_llm gen_config dist/models/{name}/ --quantization {quantization} --conv-template {template} \\\n"
        f"    --context-window-size {context} -o {built}/",
        f"mlc_llm compile {built}/mlc-chat-config.json --device {device} \\\n    -o {library}"]
    if MLC_DEVICES[device] == "so":
        lines += [f"mlc_llm serve {built} --model-lib {library} --host 127.0.0.1 --port {port}", "",
                  "# from another terminal", _curl(port, built)]
    return "\n".join([*lines, ""])


def missing_tools(stack: str) -> str | None:
    """What this machine lacks for "tensorrt_llm" or "mlc_llm", in one sentence of the lessons' language; None if it has all."""
    check_choice("stack", stack, _TOOLS)
    missing = []
    if find_spec(stack) is None and not any(map(shutil.which, _TOOLS[stack])):
        package = text("toolchains.package", name=stack)
        missing.append(text("toolchains.or_docker", package=package) if "docker" in _TOOLS[stack] else package)
    if stack == "tensorrt_llm" and not shutil.which("nvidia-smi"):
        missing.append(text("toolchains.gpu"))
    return text("toolchains.missing", stack=stack, what=text("toolchains.and").join(missing)) if missing else None


def _hub_name(model_id: str) -> str:
    # what is printed is meant for a shell, so nothing but a hub id may get into it
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model_id, re.ASCII):
        raise ValueError(f"model_id is {model_id!r}; a hub id looks like 'owner/model'")
    return model_id.split("/")[1]


def _curl(port: int, model: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}],
                       "max_tokens": 32})
    return (f"curl -s http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
            f"    -d '{body}'")
