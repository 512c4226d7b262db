"""Write the shell commands for TensorRT-LLM and MLC-LLM, as documented in 2026. Shown in lesson 08.

The course does not install or run these tools: TensorRT-LLM needs an NVIDIA GPU under Linux, and MLC-LLM is
on no package index.

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

from ..runtime import check_choice, text

PORT = 8000
TRT_PRECISIONS = ("bf16", "fp8", "nvfp4", "int4_awq")
MLC_QUANTIZATIONS = ("q0f16", "q0f32", "q3f16_1", "q4f16_1", "q4f32_1", "q4f16_awq")
# device → suffix of its library
MLC_DEVICES = {
    "cuda": "so", "metal": "so", "vulkan": "so", "android": "tar", "iphone": "tar", "webgpu": "wasm",
}
# part of a model's name → MLC's conversation template; the first match counts
_MLC_TEMPLATES = {
    "qwen": "qwen2", "llama-3": "llama-3", "llama-2": "llama-2", "tinyllama": "tinyllama_v1_0",
    "phi-3": "phi-3", "phi-4": "phi-4", "gemma-3": "gemma3_instruction", "gemma": "gemma_instruction",
    "mistral": "mistral_default", "smollm": "chatml",
}
_TOOLS = {"tensorrt_llm": ("trtllm-serve", "docker"), "mlc_llm": ("mlc_llm",)}
_TRT_QUANTIZE = r"""# quantize once; the result is a folder of safetensors
git clone https://github.com/NVIDIA/Model-Optimizer && pip install -U 'nvidia-modelopt[hf]'
pip install -r Model-Optimizer/examples/hf_ptq/requirements.txt
python Model-Optimizer/examples/hf_ptq/hf_ptq.py --pyt_ckpt_path {model_id} --qformat {precision} \
    --kv_cache_qformat none --export_path {model}

"""
_TRT_SERVE = r"""# in NVIDIA's container, which has everything
# x.y.z: a tag from https://catalog.ngc.nvidia.com
docker run --rm -it --ipc host --gpus all --ulimit memlock=-1 --ulimit stack=67108864 \
    -p 127.0.0.1:{port}:{port} -v "$PWD":/work -w /work nvcr.io/nvidia/tensorrt-llm/release:x.y.z

{quantize}cat > config.yml <<'END'
kv_cache_config:
  free_gpu_memory_fraction: 0.9
cuda_graph_config:
  enable_padding: true
END
trtllm-serve {model} --host 0.0.0.0 --port {port} --tp_size 1 --max_seq_len 4096 \
    --config config.yml

"""
_MLC_COMPILE = r"""# in an environment of its own; iphone needs a Mac with Xcode, webgpu a build from source
python -m pip install --pre -U -f https://mlc.ai/wheels mlc-llm-nightly-{build} mlc-ai-nightly-{build}

mkdir -p dist/models dist/libs && git lfs install
git clone https://huggingface.co/{model_id} dist/models/{name}
mlc_llm convert_weight dist/models/{name}/ --quantization {quantization} -o {folder}
mlc_llm gen_config dist/models/{name}/ --quantization {quantization} --conv-template {template} \
    --context-window-size {context} -o {folder}/
mlc_llm compile {folder}/mlc-chat-config.json --device {device} \
    -o {library}
"""


def tensorrt_llm_commands(model_id: str, *, precision: str = "bf16") -> str:
    """The shell commands that serve a hub model with TensorRT-LLM and OpenAI's API on 127.0.0.1.

    Args:
        precision: "bf16" serves the weights unchanged; "fp8" (Hopper, Ada), "nvfp4" (Blackwell) and
            "int4_awq" first quantize them with NVIDIA's Model Optimizer.

    Raises:
        ValueError: model_id is no hub id, or the precision is unknown.
    """
    name = _hub_name(model_id)
    check_choice("precision", precision, TRT_PRECISIONS)
    model = model_id if precision == "bf16" else f"checkpoints/{name}-{precision}"
    fields = {"model_id": model_id, "precision": precision, "model": model, "port": PORT}
    quantize = "" if precision == "bf16" else _TRT_QUANTIZE.format(**fields)
    return _TRT_SERVE.format(**fields, quantize=quantize) + _request(model)


def mlc_commands(
    model_id: str, *, quantization: str = "q4f16_1", device: str = "cuda", context: int = 4096,
    template: str | None = None,
) -> str:
    """The shell commands that convert, compile and (on a computer) serve a hub model with MLC-LLM.

    Args:
        quantization: MLC's code qAfB_N: A bits per weight, B per activation; "q0" does not quantize.
        device: target of the compiled library; "android" and "iphone" are for apps, "webgpu" for web pages.
        context: tokens of prompt and answer together; a phone has memory for fewer than a computer.
        template: name of the conversation template; by default that of the model's family.

    Raises:
        ValueError: no hub id, an unknown quantization or device, or a family without a known template.
    """
    name = _hub_name(model_id)
    check_choice("quantization", quantization, MLC_QUANTIZATIONS)
    check_choice("device", device, MLC_DEVICES)
    if template is None:
        template = next((value for key, value in _MLC_TEMPLATES.items() if key in name.lower()), None)
        if template is None:
            raise ValueError(f"template: none is known for {model_id!r}; name one that mlc_llm gen_config "
                             "--help lists")
    if not re.fullmatch(r"[\w.-]+", template, re.ASCII):
        raise ValueError(f"template is {template!r}; it must be a name, such as 'chatml'")
    folder = f"dist/{name}-{quantization}-MLC"
    library = f"dist/libs/{name}-{quantization}-{device}.{MLC_DEVICES[device]}"
    commands = _MLC_COMPILE.format(
        build="cu130" if device == "cuda" else "cpu", model_id=model_id, name=name, quantization=quantization,
        folder=folder, template=template, context=context, device=device, library=library)
    if MLC_DEVICES[device] == "so":
        commands += f"mlc_llm serve {folder} --model-lib {library} --host 127.0.0.1 --port {PORT}\n\n"
        commands += _request(folder)
    return commands


def missing_tools(stack: str) -> str | None:
    """What this machine lacks for "tensorrt_llm" or "mlc_llm", in the lessons' language; None if nothing."""
    check_choice("stack", stack, _TOOLS)
    missing = []
    if find_spec(stack) is None and not any(map(shutil.which, _TOOLS[stack])):
        package = text("toolchains.package", name=stack)
        missing.append(text("toolchains.or_docker", package=package) if stack == "tensorrt_llm" else package)
    if stack == "tensorrt_llm" and not shutil.which("nvidia-smi"):
        missing.append(text("toolchains.gpu"))
    if not missing:
        return None
    return text("toolchains.missing", stack=stack, what=text("toolchains.and").join(missing))


def _hub_name(model_id: str) -> str:
    # the commands are meant for a shell, so only a valid hub id may get into them
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model_id, re.ASCII):
        raise ValueError(f"model_id is {model_id!r}; a hub id looks like 'owner/model'")
    return model_id.split("/")[1]


def _request(model: str) -> str:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 32})
    return (f"# from another terminal\ncurl -s http://127.0.0.1:{PORT}/v1/chat/completions "
            f"-H 'Content-Type: application/json' \\\n    -d '{body}'\n")
