"""Leave Python behind: a model as a file that phones, browsers, laptops and servers run without PyTorch.

| where to | written by | run here by |
|---|---|---|
| llama.cpp, Ollama, LM Studio (GGUF) | `to_gguf` | `run_gguf`, `GgufModel`, `serve_gguf` |
| ONNX Runtime, also in a browser | `to_onnx` | `run_onnx`, `OnnxModel` |
| ExecuTorch on a phone (.pte) | `to_executorch` | `run_executorch`, `ExecutorchModel` |
| TensorRT-LLM, MLC-LLM | `tensorrt_llm_commands`, `mlc_commands` | `missing_tools` says what is missing |

`fold_norms` and `fold_batch_norm` take work out of the model before it leaves; `memory_map_figures` measures what mapping a
file saves. Everything here is one room in several files: `gguf_files`, `gguf_run`, `onnx_files`, `executorch_files`, `folding`,
`mapping`, `toolchains`, over `exporting` (sources and whole files) and `runners` (the common interface). Shown in lesson 08.
"""
from __future__ import annotations

from .executorch_files import ExecutorchModel, run_executorch, to_executorch
from .folding import fold_batch_norm, fold_norms
from .gguf_files import QUANTIZATIONS, input_importance, tensor_types, to_gguf
from .gguf_header import GgufHeader, read_gguf_header
from .gguf_run import GgufModel, run_gguf, serve_gguf
from .mapping import memory_map_figures
from .onnx_files import PRECISIONS, OnnxModel, run_onnx, to_onnx
from .runners import Answer, Runner, agreement
from .toolchains import missing_tools, mlc_commands, tensorrt_llm_commands

__all__ = [
    "PRECISIONS", "QUANTIZATIONS", "Answer", "ExecutorchModel", "GgufHeader", "GgufModel", "OnnxModel", "Runner", "agreement",
    "fold_batch_norm", "fold_norms", "input_importance", "memory_map_figures", "missing_tools", "mlc_commands",
    "read_gguf_header", "run_executorch", "run_gguf", "run_onnx", "serve_gguf", "tensor_types", "tensorrt_llm_commands",
    "to_executorch", "to_gguf", "to_onnx",
]

