"""Run code that a language model wrote, without network, home folder or other processes.

Two independent mechanisms of the Linux kernel confine the code, and limits bound its resources:

- files: Landlock (bubblewrap where Landlock is missing) leaves Python's own library readable and a scratch
  folder writable.
- network, processes: a seccomp filter allows the system calls that Python needs and refuses all others, e.g.
  socket(2), fork(2), ptrace(2), mount(2), io_uring, keyctl(2), chmod(2), signals to other processes. Threads
  work. Without fork there are no fork bombs and no daemons (RLIMIT_NPROC does not bind root), so killing the
  one process ends everything.
- limits: setrlimit(2) for address space, file size, CPU time, open files, core dumps; the parent watches the
  clock, the output, the scratch folder and the number of threads.

The sandbox does not hide that a file exists, its size and times (Landlock does not govern stat(2) and
readlink(2)), nor does it protect from flaws in the kernel. The code can look at a check that calls it
(`sys._getframe`), change builtins that the check uses, or return an object that equals everything. Ordinary
Python cannot forge `passed`, but handcrafted bytecode (or a Python with ctypes built in) can read the number
that reports success in the process's memory. Then the machine stays protected, but the score does not.

Shown in lesson 10. Sources:
    https://docs.kernel.org/userspace-api/landlock.html and …/seccomp_filter.html
    https://man7.org/linux/man-pages/man7/landlock.7.html, …/man2/{seccomp,getrlimit,prctl}.2.html
    https://github.com/containers/bubblewrap, https://peps.python.org/pep-0578/ (audit hooks)
    Chen et al. 2021, arXiv 2107.03374, section 2.3 (why HumanEval's programs run in a sandbox)
"""
from __future__ import annotations

import functools
import marshal
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from . import child as sandbox_child
from .watch import Run, RunResult, remove


def protections() -> dict[str, str]:
    """The mechanism of each of "files", "network", "processes", "limits" on this system; "" for none.

    Linux on x86-64 and aarch64 offers all four (Landlock from kernel 5.13, if it is switched on; a
    container's own seccomp profile may hide it). macOS and Windows do not. `run_untrusted` refuses if one is
    "".
    """
    abi = sandbox_child.landlock_abi()
    files = f"Landlock (ABI {abi})" if abi else "bubblewrap" if _bubblewrap() else ""
    calls = "seccomp" if sandbox_child.seccomp_offered() else ""
    limits = "setrlimit" if os.name == "posix" else ""
    return {"files": files, "network": calls, "processes": calls, "limits": limits}


def run_untrusted(
    code: str, timeout: float = 5.0, *, check: str = "", memory_mb: int = 512, disk_mb: int = 16,
    output_limit: int = 65536, insist: bool = False,
) -> RunResult:
    """Run untrusted Python code, and report whether it reached its last line without an error.

    The code gets the standard library (no installed packages), an empty environment, an empty stdin, and a
    scratch folder as current folder, which is removed afterwards. It can start threads, but no processes.

    Args:
        code: source, run as `__main__`.
        timeout: seconds of wall-clock time, counted from when Python is ready.
        check: source to run afterwards in the same namespace, e.g. a task's assertions. It is compiled
            separately, so the code cannot swallow it with an open quote, nor read it before it runs.
        memory_mb: MiB of address space including Python's own ~20; at least 64.
        disk_mb: MiB of all files in the scratch folder.
        output_limit: bytes of output; a program that writes more is stopped.
        insist: run even if a protection is missing, with at least the time and output limits. Code that
            starts processes may then outlive the run, and `passed` cannot be trusted.

    Raises:
        RuntimeError: a protection (named) is missing and `insist` is False, or Python did not start.
        ValueError: a limit is out of range.
    """
    if timeout <= 0 or memory_mb < 64 or disk_mb < 1 or output_limit < 0:
        raise ValueError(f"timeout is {timeout}, memory_mb {memory_mb}, disk_mb {disk_mb} and output_limit "
                         f"{output_limit}; they must be above 0, at least 64, 1 and 0")
    means = protections()
    missing = [name for name, by in means.items() if not by]
    if missing and not insist:
        raise RuntimeError(f"this system can't protect {', '.join(missing)} from code that nobody has read "
                           "(it lacks Landlock or bubblewrap, or seccomp); run it in a container or a "
                           "virtual machine, or pass insist=True")
    scratch = os.path.realpath(tempfile.mkdtemp(prefix="untrusted-"))
    try:
        number = secrets.token_hex(32).encode()
        limits = {"AS": memory_mb << 20, "CPU": math.ceil(timeout) + 5, "FSIZE": disk_mb << 20, "NOFILE": 64,
                  "CORE": 0}
        # the child's stderr is its report to us; the code never sees it under that number
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(_command(means, scratch, limits), **pipes, cwd=scratch, env=_environment(),
                                   close_fds=True, start_new_session=True)
        run = Run(process, scratch, means, timeout, disk_mb << 20, output_limit)
        payload = {"codes": [("<code>", code), ("<check>", check)], "number": number}
        return run.finish(marshal.dumps(payload), number)
    finally:
        remove(scratch)


# --- what the child is started with ---------------------------------------------------------------

@functools.cache
def _python() -> tuple[str, list[str], list[str]]:
    """Paths of Python, of what may be executed (Python, its loader), and of what may be read (libraries)."""
    program = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    maps = Path("/proc/self/maps")
    mapped = maps.read_text(errors="replace") if maps.exists() else ""
    loaders = re.findall(r"/\S*/ld(?:-linux|-musl|-\d|64|\.so)\S*", mapped)
    prefixes = (sys.base_prefix, sys.base_exec_prefix, "/usr", "/")
    readable = [os.path.join(prefix, lib) for prefix in prefixes for lib in ("lib", "lib64")]
    readable += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), "/usr/share/zoneinfo",
                 "/etc/ld.so.cache"]
    readable = [path for path in dict.fromkeys(readable) if os.path.exists(path)]
    return program, [program, *dict.fromkeys(loaders)], readable


@functools.cache
def _bubblewrap() -> str:
    """The path of bwrap if it is installed and may create namespaces, else ""."""
    bwrap = shutil.which("bwrap") or ""
    trial = [bwrap, "--ro-bind", "/", "/", "--unshare-all", "true"]
    return bwrap if bwrap and subprocess.run(trial, capture_output=True).returncode == 0 else ""


def _command(means: dict[str, str], scratch: str, limits: dict[str, int]) -> list[str]:
    program, programs, readable = _python()
    source = Path(sandbox_child.__file__).read_text(encoding="utf-8")
    command = [program, "-I", "-S", "-B", "-u", "-X", "utf8", "-c", source]
    landlock = None
    if "Landlock" in means["files"]:
        landlock = (int(re.sub(r"\D", "", means["files"])), readable, programs, scratch)
    limits = limits if means["processes"] else {**limits, "NPROC": 0}  # does not bind root
    settings = {"limits": limits, "landlock": landlock, "seccomp": bool(means["processes"])}
    command += ["guard", marshal.dumps(settings).hex()] if os.name == "posix" else ["run"]
    if means["files"] == "bubblewrap":
        binds = [word for path in [*readable, *programs] for word in ("--ro-bind", path, path)]
        command = [_bubblewrap(), "--unshare-all", "--die-with-parent", *binds,
                   "--dev-bind", os.devnull, os.devnull, "--bind", scratch, scratch, "--chdir", scratch,
                   "--remount-ro", "/", "--", *command]
    return command


def _environment() -> dict[str, str]:
    """Only what Python needs to start; none of our variables, because they may hold tokens."""
    if os.name == "nt":
        return {"SYSTEMROOT": os.environ.get("SYSTEMROOT", "")}
    shared = sysconfig.get_config_var("Py_ENABLE_SHARED")
    return {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")} if shared else {}
