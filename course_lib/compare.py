"""Measure size, memory, perplexity and speed of one model under each quantization.

`python -m course_lib.compare` writes data/quantization.json (SmolLM2-135M: about ten minutes on two cores);
each method runs in a fresh process. MB are 10⁶ bytes. Bits per weight are the file's, over all parameters
(embeddings and norms stay in 16 bit). Memory is the growth of the resident memory after loading and
answering. Perplexity is exp(mean loss per token) on held-out English texts; for a GGUF file, transformers
computes it on the stored values. `cl.benchmark` measures speed: of GGUF files in llama.cpp, of ONNX folders
in onnxruntime-genai, of all others in transformers.
"""
from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import loading, runtime
from .export.files import run_module
from .inference import meters
from .models import catalog
from .models.gguf_header import read_gguf_header
from .quantization.ggml import QUANTIZATIONS

if TYPE_CHECKING:
    from pandas import DataFrame

    from .export.runners import Runner

METHODS = ("bf16", "int8", "nf4", "rtn", "awq", "gptq", "Q8_0", "Q4_K_M")
DENSE = ("bf16", "fp32")
ONNX = "ONNX int4"
COLUMNS = ("bits_per_weight", "file_mb", "memory_mb", "perplexity", "tokens_per_second")


def compare_quantizations(
    names: str | Path | Sequence[str], methods: Sequence[str] = METHODS, *,
    texts: Sequence[str] | None = None,
) -> DataFrame:
    """Measure models under quantization methods: a table with the columns `COLUMNS`. Shown in lesson 07.

    Args:
        names: one model or several, each as `cl.load` takes it.
        methods: "bf16", "fp32", methods of `cl.quantize`, quantizations of `cl.to_gguf`, or "ONNX int4".
        texts: held-out texts for the perplexity; by default the course's English ones.

    Raises:
        ValueError, LookupError, OSError: as `cl.quantize`, `cl.to_gguf` and `cl.export.to_onnx`.
    """
    import pandas as pd

    from .quantization.methods import METHODS as QUANTIZERS

    names = [names] if isinstance(names, (str, Path)) else list(names)
    for method in methods:
        runtime.check_choice("method", method, (*DENSE, ONNX, *QUANTIZERS, *QUANTIZATIONS))
    rows = {(str(name), method): figures(name, method, texts)
            for name, method in runtime.progress([(name, method) for name in names for method in methods])}
    return pd.DataFrame(rows, index=COLUMNS).T.rename_axis(["model", "method"])


def figures(name: str | Path, method: str, texts: Sequence[str] | None = None) -> dict[str, float]:
    """Measure one model under one method: the values of `COLUMNS`, and "read_mb" (see `bytes_read`)."""
    from .data.texts import load_corpus

    if texts is None:
        texts = load_corpus("en", "test")["text"]
    with tempfile.TemporaryDirectory(prefix="slm-course-") as work:
        folder = Path(work) / "model"
        _write(name, method, folder)
        weights = sum(path.stat().st_size for path in folder.iterdir()
                      if path.suffix in (".safetensors", ".gguf", ".data"))
        held_out = Path(work) / "texts.json"
        held_out.write_text(json.dumps(list(texts)), encoding="utf-8")
        precision = method if method in DENSE else "bf16"
        options = ["--measure", folder, "--texts", held_out, "--precision", precision]
        output = run_module(["course_lib.compare", *options], f"measuring {method}")
    row = json.loads(output.splitlines()[-1])
    return {"bits_per_weight": 8 * weights / row.pop("parameters"), "file_mb": weights / 1e6, **row}


def _write(name: str | Path, method: str, folder: Path) -> None:
    """Write the model, quantized by this method, to a folder: weights, config, tokenizer."""
    from .export.gguf import to_gguf
    from .export.onnx import to_onnx
    from .quantization.methods import quantize, save

    if method in DENSE:
        save(*loading.load(name, method), folder)
    elif method == ONNX or method in QUANTIZATIONS:
        model, tokenizer = loading.load(name)
        if method == ONNX:
            to_onnx(model, folder, tokenizer=tokenizer)
        else:
            to_gguf(model, folder / "model.gguf", quantization=method, tokenizer=tokenizer)
            tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
    else:
        quantize(name, method, folder=folder)


def measure(folder: Path, texts: Sequence[str], precision: str = "bf16") -> dict[str, float]:
    """Memory, perplexity, speed, bytes read and number of parameters of the model in a folder.

    Run it in a fresh process. `precision`, "bf16" or "fp32", is that of a model that is not quantized.
    """
    from transformers import AutoConfig, AutoTokenizer

    from .inference.benchmark import benchmark
    from .inference.perplexity import answer_loss

    runtime.quiet()
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(texts), truncation=True, max_length=1024)["input_ids"]
    _warm_up(folder)
    before = meters.resident_memory()[0]
    runner = _runner(folder)
    if runner is not None:
        with runner:
            speed = benchmark(runner).tokens_per_second
            memory = meters.resident_memory()[0] - before
    if _is_onnx(folder):
        loss = onnx_loss(folder, ids)
    else:
        model, tokenizer = loading.load(folder, precision)
        if runner is None:
            loading.chat(model, tokenizer, "Hello", max_new_tokens=2)
            memory = meters.resident_memory()[0] - before
            speed = benchmark(model, tokenizer).tokens_per_second
        loss = answer_loss(model, [{"input_ids": row, "labels": row} for row in ids])
    shapes = catalog.linear_shapes(config)
    return {"memory_mb": memory / 1e6, "perplexity": math.exp(loss), "tokens_per_second": speed,
            "read_mb": bytes_read(folder) / 1e6, "parameters": shapes.outside + shapes.inside}


def _is_onnx(folder: Path) -> bool:
    return (folder / "model.onnx").is_file()


def _gguf_file(folder: Path) -> Path | None:
    return next(folder.glob("*.gguf"), None)


def _runner(folder: Path) -> Runner | None:
    """The runtime for an exported folder; None for a folder that transformers runs."""
    from .export.gguf_run import GgufModel
    from .export.onnx import OnnxModel

    if _is_onnx(folder):
        return OnnxModel(folder)
    file = _gguf_file(folder)
    return None if file is None else GgufModel(file)


def onnx_loss(folder: Path, rows: Sequence[Sequence[int]]) -> float:
    """Mean cross-entropy in nats per token of texts (token ids) under an ONNX model, without a cache."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    caches = {entry.name: empty for entry in session.get_inputs() if entry.name.startswith("past_key_values")}
    total = 0.0
    for row in rows:
        ids = np.array([row])
        logits = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids), **caches})[0]
        predicted = torch.from_numpy(logits[0, :-1]).float()
        total += float(torch.nn.functional.cross_entropy(predicted, torch.tensor(row[1:]), reduction="sum"))
    return total / sum(len(row) - 1 for row in rows)


def bytes_read(folder: Path) -> int:
    """Bytes of weights read to decode one token; an embedding table counts only if it is the LM head too."""
    if _is_onnx(folder):
        import onnx

        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        products = {name for node in graph.node if node.op_type in ("MatMulNBits", "MatMul", "Gemm")
                    for name in node.input[1:]}
        return sum(int(next(entry.value for entry in tensor.external_data if entry.key == "length"))
                   for tensor in graph.initializer if tensor.name in products and tensor.external_data)
    file = _gguf_file(folder)
    if file is not None:
        sizes = {tensor.name: tensor.size for tensor in read_gguf_header(file).tensors}
        table = "token_embd.weight"
        head = "output.weight"
    else:
        from safetensors import safe_open

        sizes = {}
        table = "model.embed_tokens.weight"
        head = "lm_head.weight"
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as weights:
                sizes |= {name: weights.get_tensor(name).nbytes for name in weights.keys()}
    return sum(sizes.values()) - (sizes.get(table, 0) if head in sizes else 0)


def _warm_up(folder: Path) -> None:
    """Let a one-layer model answer, so that imports and first calls do not count as the model's memory."""
    import bitsandbytes  # noqa: F401 - imported here, so that it does not count
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


def stored_comparison() -> tuple[dict[str, str], DataFrame]:
    """The last results of `python -m course_lib.compare`: its machine and model, and a row for each method.

    Raises:
        FileNotFoundError: data/quantization.json is missing.
    """
    import pandas as pd

    content = json.loads((runtime.data_dir() / "quantization.json").read_text(encoding="utf-8"))
    rows = content.pop("rows")
    return content, pd.DataFrame(rows).T.rename_axis("method")


def main() -> None:
    """Measure the profile's model and write data/quantization.json, or measure one folder and print it."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.compare", description=main.__doc__)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="print what `measure` finds, as JSON")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="a JSON list of held-out texts")
    parser.add_argument("--precision", choices=DENSE, default="bf16", help="of a model that is not quantized")
    arguments = parser.parse_args()
    if arguments.measure:
        texts = json.loads(arguments.texts.read_text(encoding="utf-8"))
        print(json.dumps(measure(arguments.measure, texts, arguments.precision)))
        return
    runtime.quiet()
    name = runtime.profile().model
    table = compare_quantizations(name)
    print(table.round(2).to_string())
    rows = {method: row.round(3).to_dict() for (_, method), row in table.iterrows()}
    content = {"machine": meters.machine(), "model": name, "rows": rows}
    runtime.write_json(runtime.data_dir() / "quantization.json", content)


if __name__ == "__main__":
    main()
