"""One table for every quantizer: size, memory, quality and speed of the same model, each measured in a process of its own.

    python -m course_lib.comparison        writes data/quantization.json (SmolLM2-135M: about ten minutes on two cores)

Bits per weight are those of the file, over all parameters: embeddings and norms that stay in 16 bit count. Memory is what
the process holds more after loading and answering once than before. Perplexity is exp(mean loss per token) on the course's
held-out English texts; for a GGUF file on the values that it stores. Tokens a second are those of `decode.benchmark`, for a
GGUF file in llama.cpp, for an ONNX folder in onnxruntime-genai. What is read per token is the weights of the file without
the embedding table, of which a token reads a row, unless the LM head is the same table.
"""
from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import catalog, loading, runtime
from .exporting import run_module
from .gguf_files import QUANTIZATIONS
from .gguf_header import read_gguf_header

if TYPE_CHECKING:
    from pandas import DataFrame

METHODS = ("bf16", "int8", "nf4", "rtn", "awq", "gptq", "Q8_0", "Q4_K_M")
ONNX = "ONNX int4"
COLUMNS = ("bits_per_weight", "file_mb", "memory_mb", "perplexity", "tokens_per_second")


def compare(names: str | Sequence[str], methods: Sequence[str] = METHODS, *, texts: Sequence[str] | None = None) -> DataFrame:
    """Quantize each model by each method and measure the result. Shown in lesson 07.

    Args:
        names: what `cl.load` takes, one or several.
        methods: "bf16", "fp32", keys of `quantize.METHODS`, names of GGUF quantizations, or "ONNX int4".
        texts: held-out texts for the perplexity; by default those of the course (English).

    Returns:
        A row for each model and method, with the columns of `COLUMNS`.

    Raises:
        ValueError, LookupError, OSError: as `quantize.quantize`.
    """
    import pandas as pd

    from .quantize import METHODS as KNOWN
    from .training import progress

    names = [names] if isinstance(names, (str, Path)) else list(names)
    for method in methods:
        runtime.check_choice("method", method, ("bf16", "fp32", ONNX, *KNOWN, *QUANTIZATIONS))
    rows = {(str(name), method): figures(name, method, texts)
            for name, method in progress([(name, method) for name in names for method in methods])}
    return pd.DataFrame(rows, index=COLUMNS).T.rename_axis(["model", "method"])


def figures(name: str | Path, method: str, texts: Sequence[str] | None = None) -> dict[str, float]:
    """The row of one model and method, by the names of `COLUMNS`; and "read_mb", the weights that a token reads."""
    from .data import load_corpus
    from .deploy import to_onnx
    from .quantize import quantize, save

    with tempfile.TemporaryDirectory(prefix="slm-course-") as place:
        folder, held_out = Path(place) / "model", Path(place) / "texts.json"
        if method in ("bf16", "fp32"):
            save(*loading.load(name, method), folder)
        elif method == ONNX:
            model, tokenizer = loading.load(name)
            to_onnx(model, folder, tokenizer=tokenizer)
            model.config.save_pretrained(folder)  # for the number of parameters
        else:
            quantize(name, method, folder=folder)
        held_out.write_text(json.dumps(list(load_corpus("en", "test")["text"] if texts is None else texts)), encoding="utf-8")
        weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf", ".data"))
        output = run_module(["course_lib.comparison", folder, held_out, method], f"measuring {method}")
    found = json.loads(output.splitlines()[-1])
    return {"bits_per_weight": 8 * weights / found.pop("parameters"), "file_mb": weights / 1e6, **found}


def measure(folder: Path, texts: Sequence[str], precision: str = "bf16") -> dict[str, float]:
    """What a fresh process finds out about a folder: memory, perplexity, speed, bytes read, and the number of parameters."""
    import psutil

    from . import decode, deploy, training

    runtime.quiet()
    _use_libraries(folder)
    process, gguf = psutil.Process(), next(folder.glob("*.gguf"), None)
    before = process.memory_info().rss
    if precision == ONNX or gguf is not None:
        with deploy.OnnxModel(folder) if precision == ONNX else deploy.GgufModel(gguf) as runner:
            speed = decode.benchmark(runner).tokens_per_second
            memory = process.memory_info().rss - before
    if precision == ONNX:
        from transformers import AutoConfig, AutoTokenizer

        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(list(texts), truncation=True, max_length=1024)["input_ids"]
        loss = onnx_loss(folder, ids)
    else:
        model, tokenizer = loading.load(folder, precision if precision == "fp32" else "bf16")
        config = model.config
        if gguf is None:
            loading.chat(model, tokenizer, "Hello", max_new_tokens=2)
            memory = process.memory_info().rss - before
            speed = decode.benchmark(model, tokenizer).tokens_per_second
        ids = tokenizer(list(texts), truncation=True, max_length=1024)["input_ids"]
        loss = training.answer_loss(model, [{"input_ids": row, "labels": row} for row in ids])
    kept, linears = catalog.shapes(config)
    return {"memory_mb": memory / 1e6, "perplexity": math.exp(loss), "tokens_per_second": speed,
            "read_mb": bytes_read(folder) / 1e6, "parameters": kept + sum(size for size, _ in linears)}


def onnx_loss(folder: Path, rows: Sequence[Sequence[int]]) -> float:
    """Mean cross-entropy per token of texts (token ids) under an ONNX folder, read without a cache."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    about = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    empty = np.zeros((1, about["num_key_value_heads"], 0, about["head_size"]), np.float32)
    total = count = 0
    for row in rows:
        ids = np.array([row])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feed |= {entry.name: empty for entry in session.get_inputs() if entry.name.startswith("past_key_values")}
        logits = torch.from_numpy(session.run(["logits"], feed)[0][0, :-1])
        total += float(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(row[1:]), reduction="sum"))
        count += len(row) - 1
    return total / count


def bytes_read(folder: Path) -> int:
    """Bytes of weights that decoding a token reads: all but an embedding table that is not the LM head as well."""
    if (folder / "model.onnx").is_file():
        import onnx

        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        products = {name for node in graph.node if node.op_type in ("MatMulNBits", "MatMul", "Gemm") for name in node.input[1:]}
        return sum(int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
                   for tensor in graph.initializer if tensor.name in products and tensor.external_data)
    gguf = next(folder.glob("*.gguf"), None)
    if gguf is not None:
        sizes = {tensor.name: tensor.size for tensor in read_gguf_header(gguf).tensors}
        table, head = "token_embd.weight", "output.weight"
    else:
        from safetensors import safe_open

        sizes, table, head = {}, "model.embed_tokens.weight", "lm_head.weight"
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as weights:
                sizes |= {name: weights.get_tensor(name).nbytes for name in weights.keys()}
    return sum(sizes.values()) - (sizes.get(table, 0) if head in sizes else 0)


def _use_libraries(folder: Path) -> None:
    """Let a model of one layer answer: what imports and first calls take is not the memory of the model that comes."""
    import bitsandbytes  # noqa: F401 - as the methods of that name need it
    import xllamacpp  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    vars(config).pop("quantization_config", None)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    loading.chat(AutoModelForCausalLM.from_config(config).eval(), tokenizer, "Hello", max_new_tokens=2)


def stored() -> tuple[dict[str, str], DataFrame]:
    """What `python -m course_lib.comparison` measured last: {"machine": …, "model": …} and a row for each method.

    Raises:
        FileNotFoundError: data/quantization.json is missing.
    """
    import pandas as pd

    content = json.loads((runtime.data_dir() / "quantization.json").read_text(encoding="utf-8"))
    rows = content.pop("rows")
    return content, pd.DataFrame(rows).T.rename_axis("method")


def main() -> None:
    """Measure the profile's model and write the file."""
    from . import bench

    runtime.quiet()
    name = runtime.profile().model
    table = compare(name)
    rows = {method: {key: round(float(value), 3) for key, value in row.items()} for (_, method), row in table.iterrows()}
    print(table.round(2).to_string())
    runtime.write_json(runtime.data_dir() / "quantization.json", {"machine": bench.machine(), "model": name, "rows": rows})


if __name__ == "__main__":
    if len(sys.argv) == 4:  # the process that `figures` starts
        where, held_out, kind = sys.argv[1:]
        print(json.dumps(measure(Path(where), json.loads(Path(held_out).read_text(encoding="utf-8")), kind)))
    else:
        main()
