"""The program around the code: a pass that can't be claimed, and every wall that the kernel puts up.

Attacks that meet the same wall are tried one after the other in one process (`outcomes`).
"""
import ast
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.sandbox.common import LANDLOCKED, kernel, outcomes, run

# --- a pass can't be claimed ----------------------------------------------------------------------

SKIP = """import sys
def jump(frame, event, arg):
    if event == 'line' and frame.f_lineno == FAILS:
        frame.f_lineno = LAST
    return jump
def line(code, number):
    if number == FAILS:
        frame = sys._getframe(1)
        frame.f_trace = jump
        frame.f_lineno = LAST
x = 1
START
assert x == 2
print('jumped')
"""
FORGED = {
    "sys.exit": "import sys; sys.exit(0)",
    "SystemExit": "raise SystemExit",
    "os._exit": "import os; os._exit(0)",
    "exit in a thread": "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
                        "time.sleep(60)",
    "atexit": "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "excepthook": "import os, sys; sys.excepthook = lambda *_: os._exit(0); raise ValueError",
    "another exit": "import os; leave = os._exit; os._exit = lambda code: leave(0); raise ValueError",
    "any pipe": "import os\nfor fd in range(64):\n    try: os.write(fd, b'0' * 64)\n"
                "    except OSError: pass\nos._exit(0)",
    "no pipe": "import os; os.closerange(0, 64); os._exit(0)",
    "a patched exec": "import builtins, os\nbuiltins.exec = lambda *_: None\nos.write = print\n"
                      "raise ValueError",
    "no modules": "import sys; sys.modules.clear(); raise ValueError",
    "a lying error": "class E(Exception):\n    def __str__(self):\n        import os; os._exit(0)\nraise E",
    "a lying class": "import os\nclass M(type): __name__ = property(lambda self: os._exit(0))\n"
                     "class E(Exception, metaclass=M): pass\nraise E",
    "a patched chain": "import functools\nfunctools.partial.__call__ = print\nraise ValueError",
    "a changed caller": "import sys\nsys._getframe(1).f_globals.clear()\nraise ValueError",
    "killing itself": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "another interpreter": "import os, sys\n"
                           "os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'pass'])",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_pass_is_not_claimed_by(name):
    """Each of them ends the process or raises, so that neither its own last line nor the check is reached."""
    result = run(FORGED[name] + "\nassert False", check="assert False")
    assert not result.passed and result.reason, result


LOOK = """import sys, types
suspects, visited = [], set()
NAMES = ['__dict__', '__closure__', '__defaults__', '__self__', 'cell_contents', 'args', 'f_locals',
         'f_globals', 'f_back', 'f_code', 'co_consts', 'gi_frame']
def visit(value, depth=0):
    if id(value) in visited or depth > 8:
        return
    visited.add(id(value))
    if isinstance(value, bytes) and value[:64].isalnum() and len(value) == 64:
        suspects.append(value)
    if type(value).__name__ in ('partial', 'map'):
        suspects.append(value)
    inner = [getattr(value, name, None) for name in NAMES]
    if isinstance(value, dict):
        inner += list(value.values())
    elif isinstance(value, (list, tuple, set)):
        inner += list(value)
    for other in inner:
        if not isinstance(other, (types.ModuleType, type)):
            visit(other, depth + 1)
visit(sys._getframe()), visit(sys._current_frames())
print(len(visited) > 100, suspects)
"""


def test_the_number_is_in_no_frame():
    assert run(LOOK).output == "True []\n"


def test_what_looks_into_memory_or_skips_lines_is_refused():
    attempts = [
        "import gc; gc.get_objects()", "import gc; gc.get_referrers(gc)", "import gc; gc.get_referents(gc)",
        "import sys; sys.settrace(print)",
        "import importlib.machinery as m, importlib.util as u\n"
        "spec = u.spec_from_file_location('x', './x' + m.EXTENSION_SUFFIXES[0])\nu.module_from_spec(spec)"]
    if "_ctypes" not in sys.builtin_module_names:
        attempts += ["import ctypes", "import importlib; importlib.import_module('_ctypes')"]
    if sys.version_info >= (3, 12):
        attempts.append("import sys; sys.monitoring.register_callback(0, 1, print)")
    for attempt, outcome in outcomes("", attempts).items():
        assert outcome.startswith("RuntimeError: refused in the sandbox"), (attempt, outcome)


@pytest.mark.parametrize("start", [
    "sys._getframe().f_trace = jump; sys.settrace(jump)",
    "m = sys.monitoring; m.use_tool_id(0, 'x'); m.register_callback(0, m.events.LINE, line); "
    "m.set_events(0, m.events.LINE)"])
def test_lines_can_not_be_skipped(start):
    code = SKIP.replace("START", start)
    last = len(code.splitlines())
    assert not run(code.replace("LAST", str(last)).replace("FAILS", str(last - 1))).passed


# --- files, network, other processes -----------------------------------------------------------------

BOMB = """import multiprocessing, os, subprocess
for call in CALLS:
    done = refused = 0
    while done < 64 and refused < 1000:
        try:
            eval(call)
            done += 1
        except OSError:
            refused += 1
    print(done, refused)
"""


@kernel
def test_a_fork_bomb_starts_no_process():
    calls = ["os.fork() or os._exit(0)", "os.forkpty()[0] or os._exit(0)",
             "os.posix_spawn('/bin/true', ['true'], {})", "subprocess.run(['/bin/true'])",
             "multiprocessing.get_context('fork').Process().start()"]
    assert run(f"CALLS = {calls!r}\n{BOMB}").output == "0 1000\n" * len(calls)


def state_of(path: Path) -> tuple:
    state = path.stat()
    return state.st_mode, state.st_size, state.st_nlink, state.st_mtime_ns, state.st_ctime_ns


@kernel
def test_home_is_not_read():
    result = run(f"import os\nprint(os.listdir({str(Path.home())!r}))")
    if LANDLOCKED:
        assert result.reason.startswith("PermissionError")
    else:  # bubblewrap may show the way to the scratch folder
        assert len(ast.literal_eval(result.output or "[]")) <= 1


@kernel
def test_nothing_outside_is_read_or_changed(tmp_path):
    attempts = [
        "open(OUTSIDE)", "open(OUTSIDE, 'w')", "os.remove(OUTSIDE)",
        "shutil.rmtree(os.path.dirname(OUTSIDE))",
        "os.truncate(OUTSIDE, 0)",
        "os.rename(OUTSIDE, 'mine')", "os.link(OUTSIDE, 'mine')",
        "os.chmod(OUTSIDE, 0o777)", "os.utime(OUTSIDE)", "os.mkdir(OUTSIDE + '2')",
        "os.symlink(OUTSIDE, 'mine'); open('mine')", "os.rmdir(os.getcwd())",
        "open(f'/proc/{os.getppid()}/environ')", "open('/etc/passwd')", "open(os.__file__, 'a')",
        "os.setxattr(OUTSIDE, 'user.x', b'1')", "open('/dev/shm/x', 'w')"]
    if LANDLOCKED:  # bubblewrap may show the way to the scratch folder, and nothing else there
        attempts.append("os.listdir('..')")
    outside = tmp_path / "precious.txt"
    outside.write_text("secret")
    state = state_of(outside)
    for attempt, outcome in outcomes(f"import os, shutil\nOUTSIDE = {str(outside)!r}", attempts).items():
        assert "Error: [Errno" in outcome, (attempt, outcome)
    assert outside.read_text() == "secret" and state_of(outside) == state
    assert [outside] == [*tmp_path.glob("precious*")]


@kernel
def test_no_server_is_reached(tmp_path, monkeypatch):
    attempts = [
        "socket.create_connection(('127.0.0.1', PORT), 5)", "socket.socket(socket.AF_UNIX).connect(PATH)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
        "socket.socket().bind(('127.0.0.1', 0))",
        "socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', PATH)",
        "socket.socketpair()[0].sendmsg([b'x'], [], 0, PATH)"]
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("local")
        local.listen()
        before = f"import socket\nPORT = {server.getsockname()[1]}\nPATH = {str(tmp_path / 'local')!r}"
        for attempt, outcome in outcomes(before, attempts).items():
            assert outcome.startswith("PermissionError"), (attempt, outcome)


@kernel
def test_other_processes_are_left_alone():
    attempts = [
        "os.kill(PID, 9)", "os.kill(os.getppid(), 0)", "os.kill(-1, 0)", "os.killpg(0, 9)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, PID)",
        "fcntl.ioctl(socket.socketpair()[0], 0x8901, PID.to_bytes(4, 'little'))",
        "resource.prlimit(PID, resource.RLIMIT_CPU, (0, 0))",
        "os.setpriority(os.PRIO_PROCESS, PID, 19)", "os.sched_setaffinity(PID, {0})"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        before = f"import fcntl, os, resource, socket\nPID = {other.pid}"
        for attempt, outcome in outcomes(before, attempts).items():
            assert outcome.startswith(("PermissionError", "ProcessLookupError")), (attempt, outcome)
        assert other.poll() is None


@kernel
def test_privileges_and_limits_are_not_regained():
    attempts = [
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**40, 2**40))", "os.memfd_create('x')", "os.chroot('.')",
        "os.setuid(1)", "os.mkfifo('x')", "os.execv('/bin/sh', ['sh'])",
        "import shutil, sys; shutil.copyfile(sys.executable, 'x'); os.execv('./x', ['x'])", "os.nice(-1)"]
    for attempt, outcome in outcomes("import os, resource", attempts).items():
        assert outcome.startswith(("PermissionError", "ValueError", "FileNotFoundError")), (attempt, outcome)


RAW = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
for name, x86, arm, *args in [
    ("clone", 56, 220, 17, 0, 0, 0, 0), ("vfork", 58, None), ("clone3", 435, 435, 0, 0),
    ("socket", 41, 198, 2, 1, 0),
    ("ptrace", 101, 117, 16, os.getppid()), ("process_vm_readv", 310, 270, os.getppid(), 0, 0, 0, 0, 0),
    ("unshare", 272, 97, 1 << 28), ("mount", 165, 40, 0, 0, 0, 0, 0),
    ("io_uring_setup", 425, 425, 1, 0), ("keyctl", 250, 219, 0, -3), ("bpf", 321, 280, 0, 0, 0),
    ("execveat", 322, 281, 0, 0, 0, 0, 0), ("x32 fork", 0x40000000 + 57, None),
    ("shmget", 29, 194, 0, 4096, 0o1666)]:
    number = x86 if os.uname().machine == "x86_64" else arm
    if number is not None:
        result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
        print(name, result if result >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
"""


@kernel
def test_machine_code_meets_the_same_wall():
    """A new Python in the sandbox has ctypes, so every system call: the kernel refuses, and it is no pass."""
    result = run(f"import os, sys\nos.execv(sys.executable, [sys.executable, '-I', '-S', '-c', {RAW!r}])")
    answers = dict(line.rsplit(" ", 1) for line in result.output.splitlines())
    assert len(answers) >= 12 and set(answers.values()) <= {"EPERM", "ENOSYS"}, result
    assert not result.passed and result.reason == "ended before its last line, with exit code 0"
