"""Measure what memory-mapping a model file saves: start time and memory of a process. Shown in lesson 08.

The kernel loads a mapped page when it is first touched; processes share such pages, and the kernel can drop
them when memory is short. A file that is read is copied into anonymous memory, which belongs to one process
and can only be swapped out. Each way runs in a fresh process
(`python -m course_lib.export.mapping FILE mapped|read`, which prints JSON).

Sources: mmap(2); https://huggingface.co/docs/safetensors/speed.
"""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.meters import resident_memory
from .files import report_failure, run_module

if TYPE_CHECKING:
    import pandas as pd

WAYS = ("mapped", "read")


def memory_map_figures(path: str | Path) -> pd.DataFrame:
    """Compare a mapped and a read model file: start time and memory of a fresh process, one row each.

    llama.cpp opens a GGUF file and generates one token; for a safetensors file, all tensors are summed.

    Returns:
        Rows "mapped" and "read". Columns: open_s, seconds until the model is open; open_mb and used_mb,
        growth of the resident memory until then and after use, in 10⁶ bytes; anonymous_mb, the anonymous part
        of used_mb (NaN on macOS and Windows, which have no /proc/self/smaps_rollup).

    Raises:
        ValueError: the file is neither .gguf nor .safetensors.
        FileNotFoundError, OSError: the file does not exist, or is damaged.
    """
    import pandas as pd

    path = Path(path)
    if path.suffix not in (".gguf", ".safetensors"):
        raise ValueError(f"path is {str(path)!r}; it must end in .gguf or .safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    outputs = [run_module(["course_lib.export.mapping", path, way], f"opening {path.name}") for way in WAYS]
    return pd.DataFrame(map(json.loads, outputs), index=list(WAYS)).astype(float)


def main(path: str, way: str) -> int:
    """Open `path`, use the weights once and print the figures as JSON; returns 1 after an error."""
    try:
        open_model = _open_gguf if path.endswith(".gguf") else _open_safetensors
        open_model(None, False)  # import first, so that imports do not count
        before = resident_memory()
        started = time.perf_counter()
        use = open_model(path, way == "mapped")
        seconds = time.perf_counter() - started
        opened = resident_memory()
        model = use()
        used = resident_memory()
        del model
    except Exception as error:  # every one is reported to the parent, which raises it again
        report_failure(error)
        return 1
    print(json.dumps({"open_s": seconds, "open_mb": (opened[0] - before[0]) / 1e6,
                      "used_mb": (used[0] - before[0]) / 1e6, "anonymous_mb": (used[1] - before[1]) / 1e6}))
    return 0


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
