"""Execute notebooks without a user interface.

`run_notebook` runs a lesson until a cell fails; tools/progress.py runs a learner's cells past failing ones.
"""
from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course_lib.runtime import text

from .notebooks import CELL_TIMEOUT, ROOT, path_of, read, write

if TYPE_CHECKING:
    from nbformat import NotebookNode

SHOWN_LINES = 12  # lines of a cell's output that are printed


# --- the executor -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Ran:
    """Result of one cell; after the endings "timeout" and "died" the kernel is unusable."""

    cell: NotebookNode
    seconds: float
    ending: str = "done"  # or "error", "timeout", "died"
    error: str = ""  # in one line, such as "NameError: name 'x' is not defined"
    traceback: str = ""  # the full error, with the code of the cell


def execute(notebook: NotebookNode, folder: Path, timeouts: Iterable[float] | None = None) -> Iterator[Ran]:
    """Run the code cells of a notebook in a fresh kernel and yield each one as it ends.

    It stops after a cell that times out or kills the kernel, or when the caller stops iterating. An error
    that the tag `raises-exception` allows counts as "done". `folder`: working folder of the kernel;
    `timeouts`: seconds for each code cell, CELL_TIMEOUT by default.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    client = NotebookClient(notebook, kernel_name="python3", store_widget_state=False, record_timing=False,
                            extra_arguments=["--IPKernelApp.log_level=40"],
                            resources={"metadata": {"path": str(folder)}})
    with client.setup_kernel(env={**os.environ, "COURSE_QUIET": "1"}):
        reply = client.wait_for_reply(client.kc.kernel_info())
        notebook.metadata["language_info"] = reply["content"]["language_info"]
        allowed = list(timeouts) if timeouts is not None else [CELL_TIMEOUT] * len(code)
        for (index, cell), seconds in zip(code, allowed, strict=True):
            client.timeout = seconds
            started = time.perf_counter()
            ending = "done"
            short = ""
            trace = ""
            try:
                client.execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
            except CellExecutionError as error:
                ending = "error"
                short = f"{error.ename}: {error.evalue}"
                trace = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the terminal's colours
            except (CellTimeoutError, DeadKernelError) as error:
                ending = "timeout" if isinstance(error, CellTimeoutError) else "died"
                trace = str(error)
                short = trace.partition("\n")[0]
            yield Ran(cell, time.perf_counter() - started, ending, short, trace)
            if ending in ("timeout", "died"):
                return


# --- lessons ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Result:
    """Result of one notebook: number of cells, wall time, and the error of the failed cell (or None)."""

    notebook: str
    lang: str
    cells: int
    seconds: float
    error: str | None


def run_notebook(name: str, lang: str, *, root: Path = ROOT, store: bool = False) -> Result:
    """Execute a notebook until a cell fails, and print time and output of each cell.

    `store` writes the outputs into the source if every cell passes; otherwise a copy goes to build/<lang>/.
    """
    source = path_of(name, lang, root)
    notebook = read(source)
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    begin = time.perf_counter()
    error = None
    with closing(execute(notebook, source.parent)) as cells:  # ends the kernel after the first error
        for number, ran in enumerate(cells, start=1):
            _report(f"{lang}/{name.removesuffix('.ipynb')} [{number}/{total}]", ran)
            if ran.ending != "done":
                error = ran.traceback
                break
    result = Result(name, lang, total, time.perf_counter() - begin, error)
    if not store:
        write(notebook, root / "build" / lang / name)
    elif error is None:
        _tidy(notebook)
        write(notebook, source)
    return result


def run_all(names: list[str], languages: Iterable[str], *, store: bool = False) -> int:
    """Run notebooks in several languages and print a summary; return exit status 1 if one failed, else 0."""
    started = time.perf_counter()
    results = [run_notebook(name, lang, store=store) for lang in languages for name in names]
    return summarise(results, time.perf_counter() - started)


def _report(where: str, ran: Ran) -> None:
    code = [line for line in ran.cell.source.splitlines() if line.strip() and not line.startswith("#")]
    print(f"{where} {ran.seconds:5.1f} s  {(code or [''])[0][:70]}", flush=True)
    lines = "".join(printed(ran.cell)).splitlines()
    for line in lines[:SHOWN_LINES]:
        print(f"    {line}", flush=True)
    if len(lines) > SHOWN_LINES:
        print(f"    … {len(lines) - SHOWN_LINES} more lines", flush=True)


def printed(cell: NotebookNode) -> list[str]:
    """Return the plain text of a cell's outputs, without pictures and widgets."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type in ("execute_result", "display_data") and not any(
                kind.startswith("image/") or "widget" in kind for kind in output.data):
            texts.append(output.data.get("text/plain", "") + "\n")
    return texts


def _tidy(notebook: NotebookNode) -> None:
    """Remove what differs between runs: widget states, versions, and how streams were split."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    merged = []
    for output in outputs:
        before = merged[-1] if merged else {}
        if output.output_type == "stream" == before.get("output_type") and output.name == before.name:
            before.text += output.text
        else:
            merged.append(output)
    return merged


def summarise(results: list[Result], seconds: float) -> int:
    """Print a table of the results; return exit status 1 if a notebook failed, else 0."""
    for result in results:
        if result.error:
            print("\n" + text("run.failed", lesson=result.notebook, lang=result.lang), result.error, sep="\n")
    width = max(len(result.notebook) for result in results)
    print(f"\n{'lesson':<{width}}  lang  cells  seconds  result")
    for result in results:
        print(f"{result.notebook:<{width}}  {result.lang:<4}  {result.cells:>5}  {result.seconds:>7.1f}  "
              f"{'FAIL' if result.error else 'pass'}")
    failed = sum(result.error is not None for result in results)
    print(f"{len(results) - failed} passed, {failed} failed in {seconds:.0f} s")
    return 1 if failed else 0
