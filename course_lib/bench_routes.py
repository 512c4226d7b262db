"""Routes from the same weights to tokens, for the bench: speed, share of what memory allows, and the quality that is left.

Each route is quantized or exported, and measured in a process of its own (`comparison.figures`). The bandwidth limit is this
machine's measured bandwidth over the weights that a token reads: no program that reads them once a token is faster.
"""
from __future__ import annotations

import tempfile
from pathlib import Path

from . import comparison, decode, deploy, loading, mapping, memory, runtime

BASELINE = "bf16"
ROUTES = {"bf16": "transformers", "int8": "bitsandbytes", "nf4": "bitsandbytes", "rtn": "our 4-bit layers",
          "awq": "our 4-bit layers", "gptq": "our 4-bit layers", comparison.ONNX: "ONNX Runtime",
          "Q8_0": "llama.cpp", "Q4_K_M": "llama.cpp"}
DRAFTED = 4


def run() -> None:
    """Print the tables, in Markdown."""
    name = runtime.profile().model
    rows = {method: comparison.figures(name, method) for method in ROUTES}
    print_routes(rows, speculative(name), decode.roofline().device.bandwidth)
    print_mapping(name)


def speculative(name: str) -> dict[str, float]:
    """The bf16 model checked against drafts of itself in nf4: tokens a second, tokens a pass, bytes read per token."""
    target, tokenizer = loading.load(name, "bf16")
    draft, _ = loading.load(name, "nf4")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Explain what a language model is."}],
                                        add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]

    def generate():
        return decode.speculative_generate(target, draft, ids.to(target.device), k=DRAFTED, max_new_tokens=32,
                                           eos_token_id=())[1]

    generate()
    best = sorted((generate() for _ in range(5)), key=lambda stats: stats.seconds)[2]  # the median of five
    read = (memory.measured_bytes(target) + DRAFTED * memory.measured_bytes(draft)) / best.tokens_per_pass
    return {"tokens_per_second": 32 / best.seconds, "tokens_per_pass": best.tokens_per_pass, "read_mb": read / 1e6}


def print_routes(rows: dict[str, dict[str, float]], drafted: dict[str, float], bandwidth: float) -> None:
    """The table of routes; `bandwidth` in bytes a second."""
    base = rows[BASELINE]
    print(f"\nDecoding, one sequence; measured bandwidth {bandwidth / 1e9:.1f} GB/s:\n")
    print("| route | weights | file (MB) | tokens/s | against bf16 | of the bandwidth limit | perplexity | against bf16 |")
    print("|---|---|---|---|---|---|---|---|")
    for method, row in rows.items():
        print(_line(ROUTES[method], method, row, base, bandwidth, f"{row['file_mb']:.0f}", f"{row['perplexity']:.1f}",
                    f"{row['perplexity'] / base['perplexity']:.2f}"))
    name = f"speculative, nf4 drafts {DRAFTED} for bf16 ({drafted['tokens_per_pass']:.1f} tokens a pass)"
    print(_line(name, "bf16", drafted, base, bandwidth, "", f"{base['perplexity']:.1f}", "1.00"))
    fastest = max(rows, key=lambda method: rows[method]["tokens_per_second"])
    print(f"\nFastest: {ROUTES[fastest]}, {fastest}, "
          f"{rows[fastest]['tokens_per_second'] / base['tokens_per_second']:.2f} times the baseline.")


def _line(
    route: str, method: str, row: dict[str, float], base: dict[str, float], bandwidth: float, size: str, *quality: str,
) -> str:
    rate = row["tokens_per_second"]
    share = 1e6 * row["read_mb"] * rate / bandwidth
    cells = (route, method, size, f"{rate:.1f}", f"{rate / base['tokens_per_second']:.2f}", f"{share:.0%}", *quality)
    return f"| {' | '.join(cells)} |"


def print_mapping(name: str) -> None:
    """Start of llama.cpp from the Q8_0 file, mapped into memory and read in full."""
    with tempfile.TemporaryDirectory() as place:
        model, tokenizer = loading.load(name)
        file = deploy.to_gguf(model, Path(place) / "model.gguf", tokenizer=tokenizer)
        del model
        figures = mapping.memory_map_figures(file)
    print("\n| Q8_0 opened by llama.cpp | until it is open (ms) | own memory (MB) |\n|---|---|---|")
    for way, row in figures.iterrows():
        print(f"| {way} | {1e3 * row.open_s:.0f} | {row.anonymous_mb:.0f} |")
    mapped, read = figures.open_s
    print(f"\nA mapped start is {read / mapped:.1f} times as fast as a full read.")
