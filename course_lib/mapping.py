"""What mapping a file into memory saves: start time and memory of a process, with and without it.

A mapped file is read by the kernel page by page, when a page is first touched. The pages belong to the file: several
processes share them, and the kernel drops them when memory gets short. A file that is read first has been copied into
memory of the process's own (anonymous memory), which only the swap could take. Both are measured here in processes of
their own: `python -m course_lib.mapping FILE mapped|read` prints one of them. Shown in lesson 08.

Source: mmap(2); https://huggingface.co/docs/safetensors/speed.
"""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .exporting import report_failure, run_module

if TYPE_CHECKING:
    import pandas as pd

WAYS = ("mapped", "read")


def memory_map_figures(path: str | Path) -> pd.DataFrame:
    """Start time and memory of a fresh process that opens a model file, mapped and read: one row each.

    A GGUF file is opened by llama.cpp, a safetensors file by safetensors. Then all weights are used once (llama.cpp makes
    a token; each safetensors is summed).

    Returns:
        Rows "mapped" and "read". Columns: open_s, seconds until the model is there; open_mb, growth of the resident memory by
        then; used_mb, growth after the weights were used; anonymous_mb, the part of it that is the process's own (NaN where
        there is no /proc/self/smaps_rollup: macOS, Windows). MB are 10⁶ bytes.

    Raises:
        FileNotFoundError: no such file. ValueError: neither .gguf nor .safetensors. OSError: a damaged file.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix not in (".gguf", ".safetensors"):
        raise ValueError(f"path is {str(path)!r}; it must end in .gguf or .safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    rows = {way: json.loads(run_module(["course_lib.mapping", path, way], f"opening {path.name}")) for way in WAYS}
    return pd.DataFrame.from_dict(rows, orient="index").astype(float)


def main(path: str, way: str) -> int:
    """Open `path`, use it, print the figures as JSON."""
    try:
        open_model = _open_gguf if path.endswith(".gguf") else _open_safetensors
        open_model(None, False)  # imports do not count
        before, own, started = *resident_memory(), time.perf_counter()
        use = open_model(path, way == "mapped")
        opened, after_open = time.perf_counter() - started, resident_memory()[0]
        kept = use()
        after, own_after = resident_memory()
        del kept
    except Exception as error:  # every one is reported to the parent, which raises it again
        report_failure(error)
        return 1
    print(json.dumps({"open_s": opened, "open_mb": (after_open - before) / 1e6, "used_mb": (after - before) / 1e6,
                      "anonymous_mb": (own_after - own) / 1e6}))
    return 0


def resident_memory() -> tuple[int, float]:
    """(resident bytes of this process, the anonymous part of them or NaN where the system does not tell)."""
    import psutil

    resident = psutil.Process().memory_info().rss
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return resident, float("nan")
    return resident, next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def _open_safetensors(path: str | None, mapped: bool):
    import torch
    from safetensors import safe_open
    from safetensors.torch import load

    if path is None:
        return None
    if mapped:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
    else:
        weights = load(Path(path).read_bytes())

    def use():
        for tensor in weights.values():
            if tensor.is_floating_point():
                tensor.sum(dtype=torch.float32)
        return weights

    return use


def _open_gguf(path: str | None, mapped: bool):
    from .gguf_run import GgufModel

    if path is None:
        import xllamacpp  # noqa: F401 - loaded here, so that it does not count

        return None
    model = GgufModel(path, context=256, mmap=mapped)

    def use():
        model.generate("Hi", max_new_tokens=1)
        return model

    return use


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
