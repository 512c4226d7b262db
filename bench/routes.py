"""Routes of one model to tokens compared: speed, use of the memory bandwidth, perplexity.

`course_lib.compare.figures` quantizes or exports the model and measures it in its own process. The limit
in tokens per second is the measured bandwidth divided by the bytes of weights that a token reads.
"""
from __future__ import annotations

import tempfile
from pathlib import Path

from course_lib import compare, loading, runtime
from course_lib.export import gguf, mapping
from course_lib.inference import meters, roofline, speculative

BASELINE = "bf16"
ROUTES = {"bf16": "transformers", "int8": "bitsandbytes", "nf4": "bitsandbytes", "rtn": "our 4-bit layers",
          "awq": "our 4-bit layers", "gptq": "our 4-bit layers", compare.ONNX: "ONNX Runtime",
          "Q8_0": "llama.cpp", "Q4_K_M": "llama.cpp"}
DRAFTED = 4


def run() -> None:
    """Measure all routes and print the tables in Markdown."""
    name = runtime.profile().model
    rows = {method: compare.figures(name, method) for method in ROUTES}
    print_routes(rows, speculative_row(name), roofline.roofline().device.bandwidth)
    print_mapping(name)


def speculative_row(name: str) -> dict[str, float]:
    """Measure bf16 with nf4 drafts of the same model: tokens per second, tokens per pass, MB per token."""
    target, tokenizer = loading.load(name, "bf16")
    draft, _ = loading.load(name, "nf4")
    messages = [{"role": "user", "content": "Explain what a language model is."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                        return_dict=True)["input_ids"]

    def generate():
        return speculative.speculative_generate(target, draft, ids.to(target.device), k=DRAFTED,
                                                max_new_tokens=32, eos_token_id=())[1]

    generate()
    best = sorted((generate() for _ in range(5)), key=lambda stats: stats.seconds)[2]  # the median of five
    read = (meters.measured_bytes(target) + DRAFTED * meters.measured_bytes(draft)) / best.tokens_per_pass
    return {"tokens_per_second": 32 / best.seconds, "tokens_per_pass": best.tokens_per_pass,
            "read_mb": read / 1e6}


def print_routes(rows: dict[str, dict[str, float]], drafted: dict[str, float], bandwidth: float) -> None:
    """Print the table of routes; `bandwidth` in bytes per second."""
    base = rows[BASELINE]
    print(f"\nDecoding, one sequence; measured bandwidth {bandwidth / 1e9:.1f} GB/s:\n")
    print("| route | weights | file (MB) | tokens/s | against bf16 | of the bandwidth limit | perplexity "
          "| against bf16 |")
    print("|---|---|---|---|---|---|---|---|")
    lines = [(ROUTES[method], method, row) for method, row in rows.items()]
    name = f"speculative, nf4 drafts {DRAFTED} for bf16 ({drafted['tokens_per_pass']:.1f} tokens a pass)"
    for route, method, row in (*lines, (name, BASELINE, {"perplexity": base["perplexity"], **drafted})):
        size = f"{row['file_mb']:.0f}" if "file_mb" in row else ""
        rate = row["tokens_per_second"]
        cells = (route, method, size, f"{rate:.1f}", f"{rate / base['tokens_per_second']:.2f}",
                 f"{1e6 * row['read_mb'] * rate / bandwidth:.0%}", f"{row['perplexity']:.1f}",
                 f"{row['perplexity'] / base['perplexity']:.2f}")
        print(f"| {' | '.join(cells)} |")
    fastest = max(rows, key=lambda method: rows[method]["tokens_per_second"])
    print(f"\nFastest: {ROUTES[fastest]}, {fastest}, "
          f"{rows[fastest]['tokens_per_second'] / base['tokens_per_second']:.2f} times the baseline.")


def print_mapping(name: str) -> None:
    """Print start time and memory of llama.cpp for a Q8_0 file, memory-mapped and read in full."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = loading.load(name)
        file = gguf.to_gguf(model, Path(folder) / "model.gguf", tokenizer=tokenizer)
        del model
        figures = mapping.memory_map_figures(file)
    print("\n| Q8_0 opened by llama.cpp | until it is open (ms) | own memory (MB) |\n|---|---|---|")
    for way, row in figures.iterrows():
        print(f"| {way} | {1e3 * row.open_s:.0f} | {row.anonymous_mb:.0f} |")
    mapped, read = figures.open_s
    print(f"\nA mapped start is {read / mapped:.1f} times as fast as a full read.")
