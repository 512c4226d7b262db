"""The program in which `evaluation.run_untrusted` runs code, started as text (`python -c`).

One process goes through two stages:

1. `_guard` gives up what the code must not have (limits, Landlock, seccomp: see `sandbox/run.py`) and
   executes Python anew, so that ctypes, which the guard needs, is never loaded where the code runs.
2. `_run` reads the code and a one-time number, runs the code, and sends the number to the parent. Only this
   number means "passed": exit codes, output and signals prove nothing, since the code chooses them.

To hide the number, `exec`, the report and the exit go to C as one chain (`deque(map(…))`). No Python frame,
module or closure holds the number, so walking `sys._getframe().f_back` finds nothing. An audit hook (PEP 578;
it cannot be removed) refuses what looks into memory or skips lines: ctypes, `gc.get_objects` and its like,
`sys.settrace`, a second interpreter, and extension modules from outside Python's own folder.
"""
import marshal
import os
import sys

_MACHINE = os.uname().machine if sys.platform.startswith("linux") and sys.maxsize > 2**32 else ""
_COLUMN = {"x86_64": 1, "aarch64": 2}.get(_MACHINE, 0)
_AUDIT_ARCH = (0, 0xC000003E, 0xC00000B7)[_COLUMN]  # <linux/audit.h>
_PRCTL, _CAPSET, _CLONE = ((0, 0, 0), (157, 126, 56), (167, 91, 220))[_COLUMN]

# System calls that are allowed: name, number on x86-64, on aarch64 (-: none).
# From asm/unistd_64.h and asm-generic/unistd.h.
_CALLS = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, open 2 -, openat 257 56, close 3 57, close_range 436 436, lseek 8 62, stat 4 -, fstat 5 80,
lstat 6 -, newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -, faccessat 269 48,
faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17,
chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -,
renameat 264 38, renameat2 316 276, link 86 -, linkat 265 37, symlink 88 -, symlinkat 266 36, ftruncate 77 46,
fallocate 285 47, fadvise64 221 223, fsync 74 82, fdatasync 75 83, sendfile 40 71, copy_file_range 326 285,
umask 95 166, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -,
epoll_pwait 281 22, eventfd2 290 19, mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, brk 12 214,
madvise 28 233, mincore 27 232, msync 26 227, membarrier 324 283, futex 202 98, set_robust_list 273 99,
get_robust_list 274 100, rseq 334 293, set_tid_address 218 96, gettid 186 178, getpid 39 172, getppid 110 173,
getpgrp 111 -, getpgid 121 155, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158, uname 63 160, sysinfo 99 179,
getrusage 98 165, getrlimit 97 163, times 100 153, wait4 61 260, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigsuspend 130 133, rt_sigtimedwait 128 137,
sigaltstack 131 132, restart_syscall 219 128, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
nanosleep 35 101, clock_nanosleep 230 115, clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169,
time 201 -, sched_yield 24 124, sched_getaffinity 204 123, getcpu 309 168, getrandom 318 278,
arch_prctl 158 -, execve 59 221, exit 60 93, exit_group 231 94, recvfrom 45 207, recvmsg 47 212,
shutdown 48 210, getsockopt 55 209, getsockname 51 204, getpeername 52 205"""
_SELF = "self"
_NULL = "null"
_ARGUMENTS = [  # allowed for some arguments only: the call's numbers, which argument, what it may be
    (62, 129, 0, [_SELF]), (234, 131, 0, [_SELF]),  # kill, tgkill: this process
    (302, 261, 2, [_NULL]),  # prlimit64: to ask
    (44, 206, 4, [_NULL]), (53, 199, 0, [1]),  # sendto: to no other address; socketpair: AF_UNIX
    # fcntl but for F_SETOWN, F_SETSIG, F_NOTIFY, leases
    (72, 25, 1, [0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1031, 1032]),
    # ioctl: isatty, FIONREAD, FIONBIO, FIOCLEX
    (16, 29, 1, [0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451]),
]

# SECCOMP_RET_…; of the errors EPERM and ENOSYS
_ALLOW = 0x7FFF0000
_REFUSE = 0x50000 | 1
_UNKNOWN = 0x50000 | 38
_KILL = 0x80000000
# BPF instructions on a 32-bit word
_LOAD = 0x20
_EQUAL = 0x15
_AT_LEAST = 0x35
_ANY_BIT = 0x45
_RETURN = 0x06


# --- what the kernel offers -----------------------------------------------------------------------

def system_call(what: str, *args) -> int:
    """syscall(2); a result below 0 raises an OSError that names `what`."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_abi() -> int:
    """The version of Landlock that the kernel offers, 0 for none."""
    try:
        return system_call("landlock_create_ruleset", 444, None, 0, 1) if _COLUMN else 0
    except (ImportError, OSError, AttributeError):
        return 0


def seccomp_offered() -> bool:
    """Whether a filter can be installed: given none, a kernel with seccomp filters answers EFAULT."""
    try:
        return bool(_COLUMN) and system_call("prctl", _PRCTL, 22, 2, None, 0, 0) < 0
    except (ImportError, OSError, AttributeError) as error:
        return getattr(error, "errno", None) == 14


def seccomp_filter() -> list[tuple[int, int, int, int]]:
    """BPF instructions for this machine and process: (code, jump if true, jump if false, constant)."""
    def when(number: int, block: list) -> list:
        return [(_EQUAL, 0, len(block), number), *block]

    allow = (_RETURN, 0, 0, _ALLOW)
    refuse = (_RETURN, 0, 0, _REFUSE)
    rows = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for words in map(str.split, _CALLS.split(",")):
        if words[_COLUMN] != "-":
            rows += when(int(words[_COLUMN]), [allow])
    rows += when(_CLONE, [(_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, 0x10000), allow, refuse])  # CLONE_THREAD
    for *numbers, argument, values in _ARGUMENTS:
        low = 16 + 8 * argument  # what is an int the kernel cuts to its low half, a pointer it does not
        block = [(_LOAD, 0, 0, low)]
        if values == [_NULL]:
            block += [(_EQUAL, 0, 3, 0), (_LOAD, 0, 0, low + 4), (_EQUAL, 0, 1, 0), allow]
        else:
            for value in values:
                block += when(os.getpid() if value == _SELF else value, [allow])
        rows += when(numbers[_COLUMN - 1], [*block, refuse])
    # newer calls than these "do not exist", clone3 among them: the C library then falls back on older ones
    return [*rows, (_AT_LEAST, 0, 1, 435), (_RETURN, 0, 0, _UNKNOWN), refuse]


# --- stage 1 --------------------------------------------------------------------------------------

def _limit(limits: dict) -> None:
    """Set soft and hard limits with setrlimit(2), never above the present hard limit."""
    import resource

    for name, value in limits.items():
        which = getattr(resource, "RLIMIT_" + name, None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(which, (value, value))
        except (OSError, ValueError):  # macOS knows some limits and refuses to set them
            if sys.platform.startswith("linux"):
                raise


def _landlock(abi: int, readable: list, programs: list, scratch: str) -> None:
    """Allow reading `readable`, executing `programs` and changing `scratch` only; from ABI 4 no TCP."""
    import struct

    # LANDLOCK_ACCESS_FS_… that the version knows
    files = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(abi, 0xFFFF)
    # files; TCP; signals
    handled = struct.pack("=QQQ", files, 3, 3)[:8 if abi < 4 else 16 if abi < 6 else 24]
    rules = [(path, 0xC if os.path.isdir(path) else 0x4) for path in readable]  # read files, list folders
    rules += [(path, 0x5) for path in programs] + [(os.devnull, 0x6)]
    rules += [(scratch, 0x71BE & files)]  # all but execute, devices, sockets, pipes
    ruleset = system_call("landlock_create_ruleset", 444, handled, len(handled), 0)
    for path, access in rules:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        system_call("landlock_add_rule", 445, ruleset, 1, struct.pack("=Qi", access, beneath), 0)
        os.close(beneath)
    system_call("landlock_restrict_self", 446, ruleset, 0)
    os.close(ruleset)


def _guard(limits: dict, landlock: tuple, seccomp: bool) -> None:
    """Apply the requested protections; one that cannot be applied raises an OSError that names it."""
    _limit(limits)
    if landlock or seccomp:
        import ctypes
        import struct

        system_call("PR_SET_PDEATHSIG", _PRCTL, 1, 9, 0, 0, 0)  # SIGKILL when the parent dies
        system_call("PR_SET_NO_NEW_PRIVS", _PRCTL, 38, 1, 0, 0, 0)
        # no capability is left, for root neither
        system_call("capset", _CAPSET, struct.pack("=Ii", 0x20080522, 0), bytes(24))
        if landlock:
            _landlock(*landlock)
        if seccomp:
            rows = seccomp_filter()
            program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))
            head = struct.pack("@HP", len(rows), ctypes.addressof(program))
            system_call("PR_SET_SECCOMP", _PRCTL, 22, 2, head, 0, 0)


# --- stage 2 --------------------------------------------------------------------------------------

# extension modules that reach memory, or load machine code
_UNFIT = ("_ctypes", "_test", "_tkinter", "_xx", "_interp")
_EVENTS = frozenset({"gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys.settrace",
                     "sys.monitoring.register_callback", "cpython.PyInterpreterState_New",
                     "sqlite3.enable_load_extension", "sqlite3.load_extension"})
_OWN = tuple(path + os.sep for path in sys.path if path.endswith(("lib-dynload", "DLLs")))


def _refuse(event, args, refused=_EVENTS, unfit=_UNFIT, own=_OWN, join="".join, starts=str.startswith,
            has=str.__contains__, text=str, is_a=isinstance, error=RuntimeError):
    """The audit hook. What it uses is in its defaults, which the code can't reach, unlike globals."""
    if event in refused or starts(event, "ctypes."):
        raise error("refused in the sandbox: " + event)
    if event == "import" and is_a(args[1], text):
        path = join((args[1],))  # a plain str, whatever class it was
        bad = not starts(path, own) or has(path, "..")
        for word in unfit:
            bad = bad or has(path, word)
        if bad:
            raise error("refused in the sandbox: extension module " + path)


def _chain(report: int, module):
    """The steps to run in C: the code, the check, the report, the exit. The input holds them all."""
    from _functools import partial
    from _operator import methodcaller

    data = sys.stdin.buffer.raw.readall()  # past the buffer, which would keep a copy
    sources = marshal.loads(data)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    codes = [compile(source, name, "exec", dont_inherit=True) for name, source in sources["codes"]]
    steps = [partial(exec, code, module.__dict__) for code in codes]
    steps += [partial(os.write, report, sources["number"]), partial(os._exit, 0)]
    return map(methodcaller("__call__"), steps)


def _reason(error: BaseException) -> str:
    """The error and its last line in code or check: "ValueError: message [code, line 3]" and the like."""
    line = ""
    step = error.__traceback__
    while step:
        name = step.tb_frame.f_code.co_filename
        line = f" [{name[1:-1]}, line {step.tb_lineno}]" if name in ("<code>", "<check>") else line
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.filename in ("<code>", "<check>"):
        line = f" [{error.filename[1:-1]}, line {error.lineno}]"
        message = error.msg
    else:
        message = str(error)
    return (f"{type(error).__name__}: {message}" if message else type(error).__name__) + line


def _run(report: int) -> None:
    from _collections import deque

    module = type(sys)("__main__")
    keep = sys.modules["__main__"]
    sys.modules["__main__"] = module
    sys.argv[:] = [""]
    spare = bytearray(1 << 22)
    write = os.write  # the code may replace both
    leave = os._exit
    write(report, b"+")
    try:
        sys.addaudithook(globals().pop("_refuse"))  # a frame's f_globals must not lead to its defaults
        deque(_chain(report, module), 0)
    except BaseException as error:
        del spare, keep  # room to say that memory ran out
        reason = _reason(error)
        write(report, b"!" + reason[:2000].encode("utf-8", "replace"))
    leave(1)


def _main(stage: str, *settings: str) -> None:
    if stage == "guard":
        try:
            _guard(**marshal.loads(bytes.fromhex(settings[0])))
        except OSError as error:
            sys.exit(str(error))
        os.execv(sys.executable, [*sys.orig_argv[:-2], "run"])
    report = os.dup(2)  # what was stderr is the way to the parent; the code's stderr joins its stdout
    os.dup2(1, 2)
    _run(report)


if __name__ == "__main__":
    _main(*sys.argv[1:])
