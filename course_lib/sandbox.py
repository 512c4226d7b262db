"""Running code that a language model wrote, in a process that can reach neither network, home nor other processes.

Who scores a model on programs runs what it wrote, and models write endless loops and `shutil.rmtree` too. Two independent
means of the Linux kernel hold the code, and limits bound what it uses up:

- files: Landlock (bubblewrap where Landlock is missing) leaves Python's own library readable and a scratch folder writable.
- network, processes: a seccomp filter lets through the system calls that Python needs and refuses all others: socket(2),
  fork(2), ptrace(2), mount(2), io_uring, keyctl(2), chmod(2), signals to other processes. Threads work. Refusing fork is what
  makes fork bombs and daemons impossible: RLIMIT_NPROC does not bind root, and killing the one process ends everything.
- limits: setrlimit(2) for address space, file size, CPU time, open files, core dumps; the parent watches the clock, the
  output, the scratch folder and the number of threads.

What it does not do: hide that a file exists, its size and times (Landlock does not govern stat(2) and readlink(2)); protect
from a flaw in the kernel; keep the code from looking at a check that calls it (`sys._getframe`), from changing builtins that
the check uses, or from returning an object that equals everything. `passed` can't be forged by the means of the language, but
CPython is no wall: who crafts bytecode by hand (or has a Python with ctypes built in) can read the process's memory, and in it
the number that reports success. The machine stays protected then; the score does not.

Shown in lesson 10. Sources:
    https://docs.kernel.org/userspace-api/landlock.html, https://docs.kernel.org/userspace-api/seccomp_filter.html
    https://man7.org/linux/man-pages/man7/landlock.7.html, …/man2/seccomp.2.html, …/man2/getrlimit.2.html, …/man2/prctl.2.html
    https://github.com/containers/bubblewrap, https://peps.python.org/pep-0578/ (audit hooks)
    Chen et al. 2021, https://arxiv.org/abs/2107.03374, section 2.3 (why HumanEval's programs run in a sandbox)
"""
from __future__ import annotations

import codecs
import contextlib
import functools
import marshal
import math
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import sandbox_child

_TICK, _STARTUP = 0.05, 60.0  # seconds between two looks at the child; that a busy machine may need to start Python
_THREADS, _ENTRIES = 64, 5000  # threads at once; files and folders in the scratch folder


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        passed: the code (and the check) ran to its last line without an error, within all limits.
        output: what it wrote to stdout and stderr, up to the limit.
        reason: "" if passed; else "ValueError: message [code, line 3]", "SystemExit: 0 […]" or which limit ended it.
        seconds: from the moment at which Python was ready to the end.
        protections: what held the code, as `protections` has it.
    """

    passed: bool
    output: str
    reason: str
    seconds: float = field(compare=False)
    protections: dict[str, str] = field(repr=False, compare=False)


def protections() -> dict[str, str]:
    """What this system offers: "files", "network", "processes" and "limits" → by which means, "" where by none.

    `run_untrusted` refuses where one is "". Linux on x86-64 and aarch64 offers all four (Landlock from kernel 5.13 on, if it is
    switched on; a container's own seccomp profile may hide it), macOS and Windows do not.
    """
    abi = sandbox_child.landlock_abi()
    files = f"Landlock (ABI {abi})" if abi else "bubblewrap" if _bubblewrap() else ""
    calls = "seccomp" if sandbox_child.seccomp_offered() else ""
    return {"files": files, "network": calls, "processes": calls, "limits": "setrlimit" if os.name == "posix" else ""}


def run_untrusted(
    code: str, timeout: float = 5.0, *, check: str = "", memory_mb: int = 512, disk_mb: int = 16, output_limit: int = 65536,
    insist: bool = False,
) -> RunResult:
    """Run Python code that nobody has read, and say whether it ran to its last line without an error.

    The code gets the standard library (no installed packages), an empty environment, an input that is at its end, and a scratch
    folder as current folder, which is removed afterwards. It can start threads, but no processes.

    Args:
        code: the source, run as `__main__`.
        timeout: seconds of wall-clock time, counted from when Python is ready.
        check: source to run afterwards in the same namespace, e.g. a task's assertions. Compiled apart, so that the code can't
            swallow it with an open quote, and can't read it before it runs.
        memory_mb: MiB of address space, Python's own ~20 included; at least 64.
        disk_mb: MiB of all files in the scratch folder, and of the largest one.
        output_limit: bytes of output; a program that writes more is stopped.
        insist: run even where a protection is missing, with what there is: at least the time and output limits. Code that
            starts processes may then outlive the run, and `passed` is only as honest as the code.

    Raises:
        RuntimeError: this system lacks a protection (the message names it) and `insist` is False, or Python did not start.
        ValueError: a limit out of range.
    """
    if timeout <= 0 or memory_mb < 64 or disk_mb < 1 or output_limit < 0:
        raise ValueError(f"timeout is {timeout}, memory_mb {memory_mb}, disk_mb {disk_mb} and output_limit {output_limit}; "
                         "they must be above 0, at least 64, 1 and 0")
    means = protections()
    missing = [name for name, by in means.items() if not by]
    if missing and not insist:
        raise RuntimeError(f"this system can't protect {', '.join(missing)} from code that nobody has read (it lacks Landlock "
                           "or bubblewrap, or seccomp); run it in a container or a virtual machine, or pass insist=True")
    scratch = os.path.realpath(tempfile.mkdtemp(prefix="untrusted-"))
    try:
        number = secrets.token_hex(32).encode()
        limits = {"AS": memory_mb << 20, "CPU": math.ceil(timeout) + 5, "FSIZE": disk_mb << 20, "NOFILE": 64, "CORE": 0}
        process = subprocess.Popen(  # the child's stderr is its report to us; the code never sees it under that number
            _command(means, scratch, limits), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=scratch, env=_environment(), close_fds=True, start_new_session=True)
        run = _Run(process, scratch, means, timeout, disk_mb << 20, output_limit)
        return run.finish(marshal.dumps({"codes": [("<code>", code), ("<check>", check)], "number": number}), number)
    finally:
        _remove(scratch)


# --- what the child is started with ------------------------------------------------------------------------------

@functools.cache
def _python() -> tuple[str, list[str], list[str]]:
    """(Python's own program, what may be executed: it and its loader, what may be read: its library and the system's)."""
    program = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    maps = Path("/proc/self/maps")
    loaders = re.findall(r"/\S*/ld(?:-linux|-musl|-\d|64|\.so)\S*", maps.read_text(errors="replace")) if maps.exists() else []
    prefixes = (sys.base_prefix, sys.base_exec_prefix, "/usr", "/")
    folders = [os.path.join(prefix, lib) for prefix in prefixes for lib in ("lib", "lib64")]
    folders += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    return program, [program, *dict.fromkeys(loaders)], [path for path in dict.fromkeys(folders) if os.path.exists(path)]


@functools.cache
def _bubblewrap() -> str:
    """The path of bwrap where it is installed and allowed to make namespaces."""
    bwrap = shutil.which("bwrap") or ""
    trial = [bwrap, "--ro-bind", "/", "/", "--unshare-all", "true"]
    return bwrap if bwrap and subprocess.run(trial, capture_output=True).returncode == 0 else ""


def _command(means: dict[str, str], scratch: str, limits: dict[str, int]) -> list[str]:
    program, programs, readable = _python()
    command = [program, "-I", "-S", "-B", "-u", "-X", "utf8", "-c", Path(sandbox_child.__file__).read_text(encoding="utf-8")]
    landlock = (int(re.sub(r"\D", "", means["files"])), readable, programs, scratch) if "Landlock" in means["files"] else None
    limits = limits if means["processes"] else {**limits, "NPROC": 0}  # does not bind root
    settings = {"limits": limits, "landlock": landlock, "seccomp": bool(means["processes"])}
    command += ["guard", marshal.dumps(settings).hex()] if os.name == "posix" else ["run"]
    if means["files"] == "bubblewrap":
        binds = [word for path in [*readable, *programs] for word in ("--ro-bind", path, path)]
        command = [_bubblewrap(), "--unshare-all", "--die-with-parent", *binds, "--dev-bind", os.devnull, os.devnull,
                   "--bind", scratch, scratch, "--chdir", scratch, "--remount-ro", "/", "--", *command]
    return command


def _environment() -> dict[str, str]:
    """None of our variables, tokens least of all; only where Python finds its own library, and what Windows needs to start."""
    shared = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")} if sysconfig.get_config_var("Py_ENABLE_SHARED") else {}
    return {"SYSTEMROOT": os.environ.get("SYSTEMROOT", "")} if os.name == "nt" else shared


# --- watching it -------------------------------------------------------------------------------------------------

class _Pipe(threading.Thread):
    """Reads a pipe to its end, keeps `limit` bytes, and says when something happened."""

    def __init__(self, stream, limit: int, news: threading.Event):
        super().__init__(daemon=True)
        self.stream, self.limit, self.news, self.data, self.over, self.ended = stream, limit, news, b"", False, False
        self.start()

    def run(self) -> None:
        with self.stream:
            while chunk := self.stream.read1(65536):
                self.over = self.over or len(self.data) + len(chunk) > self.limit
                self.data += chunk[:self.limit - len(self.data)]
                self.news.set()
        self.ended = True
        self.news.set()


class _Run:
    """One child, from its start to the verdict."""

    def __init__(self, process, scratch: str, means: dict[str, str], timeout: float, disk: int, output_limit: int):
        self.process, self.scratch, self.means, self.timeout, self.disk = process, scratch, means, timeout, disk
        self.news = threading.Event()
        self.output, self.report = _Pipe(process.stdout, output_limit, self.news), _Pipe(process.stderr, 8192, self.news)

    def finish(self, payload: bytes, number: bytes) -> RunResult:
        try:
            with contextlib.suppress(OSError):  # it did not start; its report says why
                self.process.stdin.write(payload)
                self.process.stdin.close()
            reason, begin = self._watch()
        finally:
            self._kill()
        seconds, report, reason = time.monotonic() - begin, self.report.data, reason or self._excess()
        if report[:1] != b"+":
            raise RuntimeError(f"the sandbox did not start: {report.decode(errors='replace').strip() or reason or 'no report'}")
        passed = not reason and self.process.returncode == 0 and report == b"+" + number
        if not passed and not reason:
            reason = report[2:].decode(errors="replace") if report[1:2] == b"!" else _ending(self.process.returncode)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(self.output.data)  # without a character cut in two
        return RunResult(passed, text.replace(os.linesep, "\n"), reason, seconds, self.means)

    def _watch(self) -> tuple[str, float]:
        """Wait for the end, or for a limit; (the limit, when the code started)."""
        begin, ready = time.monotonic(), False
        while True:
            self.news.wait(_TICK)
            self.news.clear()
            if self.output.ended and self.report.ended or self.process.poll() is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):  # it closed its pipes and runs on
                    self.process.wait(_TICK)
                    return "", begin
            now = time.monotonic()
            if not ready and self.report.data:
                ready, begin = True, now
            if now - begin > (self.timeout if ready else _STARTUP):
                return f"time limit of {self.timeout:g} s exceeded" if ready else "Python did not start in time", begin
            if reason := self._excess():
                return reason, begin

    def _excess(self) -> str:
        """The limit that is exceeded, or ""."""
        if self.output.over:
            return f"more than {self.output.limit} bytes of output"
        if self.report.over:
            return "wrote to the sandbox's own pipe"
        if _use(self.scratch, self.disk):
            return f"more than {self.disk >> 20} MiB or {_ENTRIES} entries in the scratch folder"
        with contextlib.suppress(OSError):  # it ended, or this is no Linux
            return f"more than {_THREADS} threads" if len(os.listdir(f"/proc/{self.process.pid}/task")) > _THREADS else ""
        return ""

    def _kill(self) -> None:
        if os.name == "posix":
            with contextlib.suppress(OSError):  # nobody left
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.output.join(2), self.report.join(2)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended before its last line, with exit code {status}"
    return f"ended by {signal.Signals(-status).name if -status in list(signal.Signals) else f'signal {-status}'}"


def _use(folder: str, limit: int) -> bool:
    """Whether a folder holds more than `limit` bytes, too many entries, or what can't be looked at."""
    used = entries = 0
    folders = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for entry in found:
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


def _remove(root: str) -> None:
    """Remove a folder, however deep and whatever its modes: each folder in it moves up to the root and is emptied there."""
    folders = [root]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
            with os.scandir(folder) as found:
                entries = list(found)
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
