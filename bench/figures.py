"""The figures of the README: the package compared with code from tutorials, measured in one run.

    python course.py bench     the package, routes, scoring, training, then every lesson (45 minutes)
    python -m bench --quick    without the lessons (35 minutes)

Prints Markdown that begins with the machine; ratios carry over to other machines better than seconds.
The figures of bench/training.py also go to build/bench.json, and a chart of them to build/growth.*.png.
"""
from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from bench import routes, training
from course_lib import loading, offline_models, runtime
from course_lib.inference import benchmark, meters
from tools import execution, notebooks

PRECISIONS = ("fp32", "bf16", "int8", "nf4")


def median_seconds(work: Callable[[], object], runs: int = 3) -> float:
    """Return the median wall time of `runs` runs after one warm-up run."""
    return statistics.median(meters.timings(work, runs))


def load_from_gguf() -> None:
    """Load the default model as tutorials do: transformers dequantizes the GGUF file at every load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = offline_models.folder()
    AutoModelForCausalLM.from_pretrained(folder, gguf_file=offline_models.GGUF, dtype=torch.bfloat16,
                                         quantization_config=GgufConfig(dequantize=True))
    AutoTokenizer.from_pretrained(folder, gguf_file=offline_models.GGUF)


def package_figures() -> None:
    """Print the times of importing the package, loading the model and decoding, with baselines."""
    imported, bare = (median_seconds(partial(subprocess.run, [sys.executable, "-c", code], check=True))
                      for code in ("import course_lib", "pass"))
    print(f"- `import course_lib`: {1e3 * (imported - bare):.0f} ms")
    ours = median_seconds(loading.load)
    theirs = median_seconds(load_from_gguf, runs=1)
    print(f"- `cl.load()`, warm: {ours:.2f} s; dequantizing the GGUF at every load: {theirs:.1f} s "
          f"({theirs / ours:.0f} times as long)")
    print("\n| precision | first token (ms) | tokens/s | against fp32 |\n|---|---|---|---|")
    base = None
    for precision in PRECISIONS:
        result = benchmark.benchmark(*loading.load(precision=precision))
        base = base or result.tokens_per_second
        print(f"| {precision} | {result.first_token * 1e3:.0f} | {result.tokens_per_second:.1f} | "
              f"{result.tokens_per_second / base:.2f} |")


def choices_figures(questions: int = 40) -> None:
    """Compare the time of scoring four-choice questions: lm-evaluation-harness's `HFLM` against our class."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from course_lib.data import texts
    from course_lib.evaluation.shared_context import SharedContextLM

    with runtime.silenced():
        model, tokenizer = loading.load(precision="fp32")
        theirs, ours = (kind(pretrained=model, tokenizer=tokenizer, batch_size=8)
                        for kind in (HFLM, SharedContextLM))
    print(f"\n{training.markdown([])}")
    for lang, language in (("en", "English"), ("ko", "Korean")):
        rows = texts.load_choices(lang).select(range(questions))
        requests = [Instance("loglikelihood", {}, (row["question"], f" {choice}"), index)
                    for index, row in enumerate(rows) for choice in row["choices"]]
        training.compare(
            f"{questions} {language} questions of four choices: "
            "lm-evaluation-harness's own scoring against ours",
            *(partial(meters.seconds, partial(side.loglikelihood, requests, disable_tqdm=True))
              for side in (theirs, ours)))


def write_training_figures() -> None:
    """Run bench/training.py and write build/bench.json and build/growth.<lang>.png."""
    from course_lib.pictures import canvas
    from course_lib.pictures.charts.training import growth_lines

    folder = notebooks.ROOT / "build"
    folder.mkdir(exist_ok=True)
    figures = {"machine": meters.machine(), **training.run()}
    runtime.write_json(folder / "bench.json", figures)
    runtime.use_korean_font()
    for lang in runtime.LANGUAGES:
        runtime.set_language(lang)
        (folder / f"growth.{lang}.png").write_bytes(canvas.png(growth_lines(figures["growth"])))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time the package and the lessons.")
    parser.add_argument("--quick", action="store_true", help="leave the lessons out")
    args = parser.parse_args()
    runtime.quiet()
    print(f"Machine: {meters.machine()}\n")
    package_figures()
    choices_figures()
    routes.run()
    write_training_figures()
    if args.quick:
        return 0
    started = time.perf_counter()
    results = [execution.run_notebook(name, "en") for name in notebooks.notebook_names(solutions=False)]
    return execution.summarise(results, time.perf_counter() - started)
