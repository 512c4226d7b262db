"""Watch one process of the sandbox until it ends: clock, output, scratch folder and threads."""
from __future__ import annotations

import codecs
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

_TICK = 0.05  # seconds between two checks of the child
_STARTUP = 60.0  # seconds that a busy machine may need to start Python
_THREADS = 64  # at the same time
_ENTRIES = 5000  # files and folders in the scratch folder


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        passed: the code (and the check) ran to its last line without an error, within all limits.
        output: what it wrote to stdout and stderr, up to the limit.
        reason: "" if passed; else "ValueError: message [code, line 3]", or the limit that ended the run.
        seconds: time from when Python was ready to the end.
        protections: the mechanisms that confined the code, as in `protections()`.
    """

    passed: bool
    output: str
    reason: str
    seconds: float = field(compare=False)
    protections: dict[str, str] = field(repr=False, compare=False)


class _Pipe(threading.Thread):
    """Reads a pipe to its end, keeps the first `limit` bytes, and sets `news` at each change."""

    def __init__(self, stream, limit: int, news: threading.Event):
        super().__init__(daemon=True)
        self.stream = stream
        self.limit = limit
        self.news = news
        self.data = b""
        self.over = False
        self.ended = False
        self.start()

    def run(self) -> None:
        with self.stream:
            while chunk := self.stream.read1(65536):
                self.over = self.over or len(self.data) + len(chunk) > self.limit
                self.data += chunk[:self.limit - len(self.data)]
                self.news.set()
        self.ended = True
        self.news.set()


@dataclass
class Run:
    """One child process, from its start to the result; `disk` and `output_limit` are in bytes."""

    process: subprocess.Popen
    scratch: str
    means: dict[str, str]
    timeout: float
    disk: int
    output_limit: int

    def __post_init__(self) -> None:
        self.news = threading.Event()
        self.output = _Pipe(self.process.stdout, self.output_limit, self.news)
        self.report = _Pipe(self.process.stderr, 8192, self.news)

    def finish(self, payload: bytes, number: bytes) -> RunResult:
        try:
            with contextlib.suppress(OSError):  # it did not start; its report says why
                self.process.stdin.write(payload)
                self.process.stdin.close()
            reason, begin = self._watch()
        finally:
            self._kill()
        seconds = time.monotonic() - begin
        report = self.report.data
        reason = reason or self._excess()
        if report[:1] != b"+":
            said = report.decode(errors="replace").strip()
            raise RuntimeError(f"the sandbox did not start: {said or reason or 'no report'}")
        passed = not reason and self.process.returncode == 0 and report == b"+" + number
        if not passed and not reason:
            raised = report[1:2] == b"!"
            reason = report[2:].decode(errors="replace") if raised else _ending(self.process.returncode)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # leaves out a character cut in two
        output = decoder.decode(self.output.data).replace(os.linesep, "\n")
        return RunResult(passed, output, reason, seconds, self.means)

    def _watch(self) -> tuple[str, float]:
        """Wait for the end or a limit; return the limit ("" for none) and when the code started."""
        begin = time.monotonic()
        ready = False
        while True:
            self.news.wait(_TICK)
            self.news.clear()
            if self.output.ended and self.report.ended or self.process.poll() is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its pipes but still runs
                    self.process.wait(_TICK)
                    return "", begin
            now = time.monotonic()
            if not ready and self.report.data:
                ready = True
                begin = now
            if ready and now - begin > self.timeout:
                return f"time limit of {self.timeout:g} s exceeded", begin
            if not ready and now - begin > _STARTUP:
                return "Python did not start in time", begin
            if reason := self._excess():
                return reason, begin

    def _excess(self) -> str:
        """The limit that is exceeded, or "" for none."""
        if self.output.over:
            return f"more than {self.output.limit} bytes of output"
        if self.report.over:
            return "wrote to the sandbox's own pipe"
        if _is_overfull(self.scratch, self.disk):
            return f"more than {self.disk >> 20} MiB or {_ENTRIES} entries in the scratch folder"
        with contextlib.suppress(OSError):  # it ended, or the system is not Linux
            if len(os.listdir(f"/proc/{self.process.pid}/task")) > _THREADS:
                return f"more than {_THREADS} threads"
        return ""

    def _kill(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(OSError):  # no process is left
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.output.join(2)
        self.report.join(2)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended before its last line, with exit code {status}"
    known = -status in list(signal.Signals)
    return f"ended by {signal.Signals(-status).name if known else f'signal {-status}'}"


def _is_overfull(folder: str, limit: int) -> bool:
    """Whether a folder holds more than `limit` bytes, too many entries, or something unreadable."""
    used = 0
    entries = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as content:
                for entry in content:
                    entries += 1
                    used += entry.stat(follow_symlinks=False).st_size
                    if used > limit or entries > _ENTRIES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed meanwhile
        except OSError:  # too long a path, or made unreadable
            return True
    return False


def remove(root: str) -> None:
    """Remove a folder of any depth and with any modes: subfolders move up to be emptied there."""
    folders = [root]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
            with os.scandir(folder) as content:
                entries = list(content)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    folders.append(os.path.join(root, secrets.token_hex(8)))
                    os.rename(entry.path, folders[-1])
                else:
                    os.unlink(entry.path)
            if folder != root:
                os.rmdir(folder)
    shutil.rmtree(root, ignore_errors=True)
