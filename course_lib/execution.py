"""Executing lessons without a screen: one line a cell as it runs, what it printed, a summary at the end."""
from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .lessons import CELL_TIMEOUT, ROOT, read, write
from .runtime import text

if TYPE_CHECKING:
    from nbformat import NotebookNode

SHOWN_LINES = 12  # of what a cell printed


@dataclass(frozen=True)
class Result:
    """How one notebook ran: seconds of wall time, and the error of the cell that failed (None: it passed)."""

    notebook: str
    lang: str
    cells: int
    seconds: float
    error: str | None


def run_notebook(name: str, lang: str, *, root: Path = ROOT, store: bool = False) -> Result:
    """Execute one notebook in a fresh kernel.

    Args:
        store: write the outputs into the source (only when every cell passed); else the executed copy goes to
            `build/<lang>/` and the source stays as it is.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    source = root / "notebooks" / lang / name
    notebook = read(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    started = {}

    def on_start(cell: NotebookNode, cell_index: int) -> None:
        started[cell.id] = time.perf_counter()

    def on_done(cell: NotebookNode, cell_index: int, **_: object) -> None:
        if cell.cell_type == "code":
            _report(name, lang, code.index(cell) + 1, len(code), time.perf_counter() - started[cell.id], cell)

    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", store_widget_state=False,
                            record_timing=False, extra_arguments=["--IPKernelApp.log_level=40"],
                            resources={"metadata": {"path": str(source.parent)}},
                            on_cell_start=on_start, on_cell_executed=on_done)
    begin, error = time.perf_counter(), None
    try:
        client.execute(env={**os.environ, "COURSE_QUIET": "1"})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = re.sub(r"\x1b\[[0-9;]*m", "", str(failure))  # without the terminal's colours
    result = Result(name, lang, len(code), time.perf_counter() - begin, error)
    if not store:
        write(notebook, root / "build" / lang / name)
    elif error is None:
        _tidy(notebook)
        write(notebook, source)
    return result


def _report(name: str, lang: str, number: int, total: int, seconds: float, cell: NotebookNode) -> None:
    first = next((line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")), "")
    print(f"{lang}/{name.removesuffix('.ipynb')} [{number}/{total}] {seconds:5.1f} s  {first[:70]}", flush=True)
    lines = "".join(printed(cell)).splitlines()
    for line in lines[:SHOWN_LINES]:
        print(f"    {line}", flush=True)
    if len(lines) > SHOWN_LINES:
        print(f"    … {len(lines) - SHOWN_LINES} more lines", flush=True)


def printed(cell: NotebookNode) -> list[str]:
    """The plain text of a cell's outputs, without pictures and widgets."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type in ("execute_result", "display_data") and not any(
                kind.startswith("image/") or "widget" in kind for kind in output.data):
            texts.append(output.data.get("text/plain", "") + "\n")
    return texts


def _tidy(notebook: NotebookNode) -> None:
    """Leave out what differs from run to run: widget states, who executed it, and how a stream was cut into pieces."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _merge_streams(cell.outputs)


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    merged = []
    for output in outputs:
        if merged and output.output_type == "stream" == merged[-1].output_type and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def summarise(results: list[Result], seconds: float) -> int:
    """Print a table of the results; the exit status: 0 when every notebook passed, else 1."""
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
