"""Commands for stacks that are not installed: a shell script of the right steps, for sensible arguments
only."""
import subprocess
import sys

import pytest

from course_lib import runtime
from course_lib.export import toolchains


def test_tensorrt_llm_commands():
    plain = toolchains.tensorrt_llm_commands("Qwen/Qwen2.5-1.5B-Instruct")
    assert "trtllm-serve Qwen/Qwen2.5-1.5B-Instruct --host" in plain and "hf_ptq" not in plain
    small = toolchains.tensorrt_llm_commands("Qwen/Qwen2.5-1.5B-Instruct", precision="fp8")
    assert "--qformat fp8" in small and "127.0.0.1:8000:8000" in small
    assert "trtllm-serve checkpoints/Qwen2.5-1.5B-Instruct-fp8" in small
    assert "free_gpu_memory_fraction" in small


@pytest.mark.parametrize("device, ending, serves", [
    ("cuda", "so", True), ("android", "tar", False), ("webgpu", "wasm", False)])
def test_mlc_commands(device, ending, serves):
    lines = toolchains.mlc_commands("HuggingFaceTB/SmolLM2-135M-Instruct", device=device, context=2048)
    for step in ("convert_weight", "gen_config", "compile"):
        assert f"mlc_llm {step} d" in lines
    assert "--conv-template chatml" in lines and "--context-window-size 2048" in lines
    assert f"{device}.{ending}" in lines
    assert ("mlc_llm serve" in lines) == serves


@pytest.mark.skipif(sys.platform == "win32", reason="no bash there")
def test_the_commands_are_a_shell_script():
    for script in (toolchains.tensorrt_llm_commands("a/b", precision="int4_awq"),
                   toolchains.mlc_commands("a/qwen-b")):
        bash = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert bash.stderr == ""


@pytest.mark.parametrize("call, words", [
    (lambda: toolchains.tensorrt_llm_commands("x; rm -rf /"), "a hub id looks like"),
    (lambda: toolchains.mlc_commands("a/b\nc"), "a hub id looks like"),
    (lambda: toolchains.tensorrt_llm_commands("a/b", precision="int4"), "precision is 'int4'"),
    (lambda: toolchains.mlc_commands("a/qwen", quantization="q8"), "quantization is 'q8'"),
    (lambda: toolchains.mlc_commands("a/qwen", device="toaster"), "device is 'toaster'"),
    (lambda: toolchains.mlc_commands("a/unheard-of"), "template: none is known"),
    (lambda: toolchains.mlc_commands("a/qwen", template="x y"), "template is 'x y'"),
    (lambda: toolchains.missing_tools("vllm"), "stack is 'vllm'")])
def test_commands_for_nothing_sensible_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(toolchains.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchains, "find_spec", lambda name: None)
    assert toolchains.missing_tools("mlc_llm") == (
        "mlc_llm needs the package mlc_llm, which this machine does not have")
    assert toolchains.missing_tools("tensorrt_llm") == (
        "tensorrt_llm needs the package tensorrt_llm (or docker) and an NVIDIA GPU with its driver, which "
        "this machine does not have")
    runtime.set_language("ko")
    assert toolchains.missing_tools("mlc_llm") == (
        "mlc_llm: mlc_llm 패키지가 필요하지만 이 컴퓨터에는 없습니다")
    assert toolchains.missing_tools("tensorrt_llm") == (
        "tensorrt_llm: tensorrt_llm 패키지(또는 docker)와 드라이버가 설치된 NVIDIA GPU가 필요하지만 "
        "이 컴퓨터에는 없습니다")
    monkeypatch.setattr(toolchains.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert toolchains.missing_tools("mlc_llm") is None
    assert toolchains.missing_tools("tensorrt_llm") is None
