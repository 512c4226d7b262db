"""The figures of the README: what the package saves against the code that tutorials show, as ratios in one run.

    python course.py bench                the package, routes, scoring, training, then every lesson (45 minutes)
    python -m course_lib.bench --quick    without the lessons (35 minutes)

Prints Markdown, first of all the machine: seconds of another machine mean nothing, ratios a little more. The training
figures (`bench_training`) also go to build/bench.json, with the machine, and their growth to a picture beside it.
"""
from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from . import bench_routes, decode, default_model, execution, lessons, loading, runtime

PRECISIONS = ("fp32", "bf16", "int8", "nf4")


def seconds(work: Callable[[], object], runs: int = 3) -> float:
    """Median wall time of `runs` runs after one that does not count."""
    return statistics.median(decode.timings(work, runs))


def machine() -> str:
    """One line that names processor, cores, memory, system and versions."""
    import psutil
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (f"{name}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB{device}, {platform.system()}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")


def load_from_gguf() -> None:
    """What tutorials do with a GGUF file: hand it to transformers, which dequantizes it at every load."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = default_model.folder()
    AutoModelForCausalLM.from_pretrained(folder, gguf_file=default_model.GGUF, dtype=torch.bfloat16,
                                         quantization_config=GgufConfig(dequantize=True))
    AutoTokenizer.from_pretrained(folder, gguf_file=default_model.GGUF)


def package_figures() -> None:
    """Import, load and decode, against the plain way where there is one."""
    imported = seconds(lambda: subprocess.run([sys.executable, "-c", "import course_lib"], check=True))
    bare = seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))
    print(f"- `import course_lib`: {1e3 * (imported - bare):.0f} ms")
    ours, theirs = seconds(loading.load), seconds(load_from_gguf, runs=1)
    print(f"- `cl.load()`, warm: {ours:.2f} s; dequantizing the GGUF at every load: {theirs:.1f} s "
          f"({theirs / ours:.0f} times as long)")
    print("\n| precision | first token (ms) | tokens/s | against fp32 |\n|---|---|---|---|")
    base = None
    for precision in PRECISIONS:
        result = decode.benchmark(*loading.load(precision=precision))
        base = base or result.tokens_per_second
        print(f"| {precision} | {result.first_token * 1e3:.0f} | {result.tokens_per_second:.1f} | "
              f"{result.tokens_per_second / base:.2f} |")


def choices_figures(questions: int = 40) -> None:
    """Scoring the four choices of each question: the harness's own model class against ours, the same requests."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from . import bench_training, data
    from .shared_context import SharedContextLM

    with runtime.silenced():
        model, tokenizer = loading.load(precision="fp32")
        theirs, ours = (kind(pretrained=model, tokenizer=tokenizer, batch_size=8) for kind in (HFLM, SharedContextLM))
    print(f"\n{bench_training.markdown([])}")
    for lang, language in (("en", "English"), ("ko", "Korean")):
        rows = data.load_choices(lang).select(range(questions))
        requests = [Instance("loglikelihood", {}, (row["question"], f" {choice}"), index)
                    for index, row in enumerate(rows) for choice in row["choices"]]
        bench_training.compare(
            f"{questions} {language} questions of four choices: lm-evaluation-harness's own scoring against ours",
            *(partial(bench_training.seconds, partial(side.loglikelihood, requests, disable_tqdm=True))
              for side in (theirs, ours)))


def write_training_figures() -> None:
    """Run `bench_training`; build/bench.json and build/growth.<lang>.png are complete or not there."""
    from . import bench_training, show

    folder = lessons.ROOT / "build"
    folder.mkdir(exist_ok=True)
    figures = {"machine": machine(), **bench_training.run()}
    runtime.write_json(folder / "bench.json", figures)
    show.use_korean_font()
    for lang in runtime.LANGUAGES:
        runtime.set_language(lang)
        (folder / f"growth.{lang}.png").write_bytes(show.png(show.growth_lines(figures["growth"])))


def main() -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.bench", description="Time the package and the lessons.")
    parser.add_argument("--quick", action="store_true", help="leave the lessons out")
    args = parser.parse_args()
    runtime.quiet()
    print(f"Machine: {machine()}\n")
    package_figures()
    choices_figures()
    bench_routes.run()
    write_training_figures()
    if args.quick:
        return 0
    started = time.perf_counter()
    results = [execution.run_notebook(name, "en") for name in lessons.notebook_names(solutions=False)]
    return execution.summarise(results, time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
