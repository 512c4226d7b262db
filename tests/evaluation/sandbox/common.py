"""What the tests of the sandbox share.

Where a system lacks the kernel's means (macOS, Windows, some containers) the tests of those means are
skipped, with that reason; all others run there with `insist=True`.
"""
import functools

import psutil
import pytest

from course_lib.evaluation.sandbox import run as sandbox

MISSING = [name for name, by in sandbox.protections().items() if not by]
kernel = pytest.mark.skipif(bool(MISSING), reason=f"this system can't protect: {', '.join(MISSING)}")
LANDLOCKED = "Landlock" in sandbox.protections()["files"]
run = functools.partial(sandbox.run_untrusted, timeout=60, insist=bool(MISSING))

TRY_EACH = """
for number, attempt in enumerate(ATTEMPTS):
    try:
        exec(attempt)
        print(number, "worked")
    except BaseException as error:
        print(number, f"{type(error).__name__}: {error}".splitlines()[0])
"""


def refused(code: str, error: str = "PermissionError", **settings) -> None:
    """The code ends with that error, at its last line."""
    result = run(code, **settings)
    assert not result.passed and result.reason.startswith(error), result
    assert result.reason.endswith(f"line {len(code.rstrip().splitlines())}]"), result


def outcomes(before: str, attempts: list[str]) -> dict[str, str]:
    """What became of each attempt, one after the other in one process: the error, or "worked".

    An attempt that ends the process leaves no outcome for itself and those after it, which is an error here.
    """
    result = run(f"{before}\nATTEMPTS = {attempts!r}\n{TRY_EACH}")
    lines = [line.split(" ", 1) for line in result.output.splitlines()]
    assert [int(number) for number, _ in lines] == list(range(len(attempts))), result
    return {attempt: outcome for attempt, (_, outcome) in zip(attempts, lines, strict=True)}


def alive(text: str) -> list[int]:
    """The processes whose ids were printed and that are still there; they are ended here."""
    numbers = [int(word) for word in text.split() if word.isdigit()]
    processes = [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]
    processes = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
    for process in processes:
        process.kill()
    return [process.pid for process in processes]
