"""Running code that nobody has read: what a run says, what it may use, refusing without means."""
import ast
import os
import sys
import threading

import pytest

from course_lib.evaluation.sandbox import child as sandbox_child
from course_lib.evaluation.sandbox import run as sandbox
from tests.evaluation.sandbox.common import alive, kernel, refused, run

PROTECTIONS = ["files", "network", "processes", "limits"]


def test_code_that_runs_to_its_end_passes():
    result = run("import math\nprint('안녕, naïve 🙂', math.tau)\nassert __name__ == '__main__'")
    assert result.passed and result.reason == ""
    assert result.output == "안녕, naïve 🙂 6.283185307179586\n"
    assert 0 < result.seconds < 60 and set(result.protections) == {"files", "network", "processes", "limits"}


@pytest.mark.parametrize("code, reason", [
    ("x = 1\nraise ValueError('값이 없습니다')", "ValueError: 값이 없습니다 [code, line 2]"),
    ("def f():\n    return {}['k']\n\nf()", "KeyError: 'k' [code, line 2]"),
    ("assert 1 == 2", "AssertionError [code, line 1]"),
    ("class Odd(Exception):\n    def __str__(self):\n        return 'a' * 5000\nraise Odd",
     "Odd: " + "a" * 1995),
    ("raise KeyboardInterrupt", "KeyboardInterrupt [code, line 1]"),
    ("input()", "EOFError: EOF when reading a line [code, line 1]")])
def test_an_error_is_named_with_its_line(code, reason):
    result = run(code)
    assert (result.passed, result.reason) == (False, reason)


def test_a_syntax_error_is_named_with_its_line():
    result = run("print('before')\ndef f(:\n    pass")
    assert result.reason.startswith("SyntaxError: ") and result.reason.endswith("[code, line 2]")
    assert result.output == ""


def test_stdout_and_stderr_arrive_even_when_the_process_dies():
    result = run("import os, sys\nprint('one')\nprint('two', file=sys.stderr)\nsys.stdout.write('three')\n"
                 "os._exit(3)")
    assert result.output == "one\ntwo\nthree"
    assert result.reason == "ended before its last line, with exit code 3"


def test_a_check_runs_after_the_code_in_the_same_namespace():
    code = "def double(x):\n    return 2 * x"
    assert run(code, check="assert double(4) == 8").passed
    assert run(code, check="\nassert double(4) == 9, double(4)").reason == "AssertionError: 8 [check, line 2]"
    assert run(code, check="double(").reason.endswith("[check, line 1]")
    assert run(code + "\ntext = '''", check="assert False").reason.startswith("SyntaxError")


def test_limits_out_of_range_are_refused():
    for settings in ({"timeout": 0}, {"memory_mb": 10}, {"disk_mb": 0}, {"output_limit": -1}):
        with pytest.raises(ValueError, match="must be above 0, at least 64, 1 and 0"):
            sandbox.run_untrusted("pass", **settings)


def test_runs_in_several_threads_do_not_disturb_each_other():
    results = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: run(f"print({n})").output}))
               for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: f"{n}\n" for n in range(6)}


def test_the_scratch_folder_works_as_usual():
    code = ("import os, shutil, tempfile\nopen('a', 'w').write('text')\n"
            "os.mkdir('d')\nos.rename('a', 'd/b')\nshutil.copyfile('d/b', 'c')\n"
            "with tempfile.TemporaryDirectory(dir='.') as folder: open(folder + '/x', 'w')\n"
            "shutil.rmtree('d')\n"
            "open(os.devnull, 'w').write('gone')\nprint(sorted(os.listdir()), open('c').read())")
    assert run(code).output == "['c'] text\n"


def test_asyncio_and_the_standard_library_work():
    code = ("import asyncio, collections, dataclasses, datetime, decimal, hashlib, heapq, itertools, json, "
            "random, re, statistics, string, typing, unittest\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "async def main():\n    await asyncio.sleep(0.01)\n"
            "    return await asyncio.to_thread(sum, [1, 2])\n"
            "print(asyncio.run(main()), list(ThreadPoolExecutor(2).map(abs, [-1, -2])), "
            "hashlib.sha256(b'').hexdigest()[:6])")
    assert run(code).output == "3 [1, 2] e3b0c4\n"


def test_the_environment_and_open_files_are_not_passed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "open").write_text("secret")
    with open(tmp_path / "open") as file:
        os.set_inheritable(file.fileno(), True)
        result = run("import os\nprint(sorted(os.environ))\n"
                     "for fd in range(3, 64):\n    try: print(os.read(fd, 9))\n    except OSError: pass")
    harmless = {"LC_CTYPE", "LD_LIBRARY_PATH", "SYSTEMROOT", "PWD"}
    assert result.passed and set(ast.literal_eval(result.output)) <= harmless


def test_installed_packages_are_not_there():
    refused("import numpy", "ModuleNotFoundError")


# --- without the kernel's means -------------------------------------------------------------------

def test_the_protections_of_this_system():
    means = sandbox.protections()
    assert list(means) == PROTECTIONS and all(isinstance(by, str) for by in means.values())
    assert (means["limits"] == "setrlimit") == (os.name == "posix")
    if not sys.platform.startswith("linux"):
        assert not means["files"] and not means["network"]


@pytest.mark.parametrize("gone, named", [
    (["landlock_abi"], "files"), (["seccomp_offered"], "network, processes"),
    (["landlock_abi", "seccomp_offered"], "files, network, processes")])
def test_without_a_means_it_refuses(monkeypatch, gone, named):
    for name in gone:
        monkeypatch.setattr(sandbox_child, name, lambda: 0)
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: "")
    monkeypatch.setattr(sandbox.subprocess, "Popen", None)  # nothing is started
    with pytest.raises(RuntimeError, match=f"can't protect .*{named}.* from code that nobody .*insist=True"):
        sandbox.run_untrusted("pass")


def test_insisting_runs_with_what_there_is(monkeypatch):
    monkeypatch.setattr(sandbox, "protections", lambda: dict.fromkeys(PROTECTIONS, ""))
    result = sandbox.run_untrusted("print('ran')", 60, insist=True)
    assert result.passed and result.output == "ran\n" and not any(result.protections.values())
    endless = sandbox.run_untrusted("while True: pass", 0.3, insist=True)
    assert endless.reason == "time limit of 0.3 s exceeded"
    assert not sandbox.run_untrusted("import os; os._exit(0)", 60, insist=True).passed


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork and no process groups")
def test_insisting_still_ends_the_group_of_processes(monkeypatch):
    monkeypatch.setattr(sandbox, "protections", lambda: dict.fromkeys(PROTECTIONS, ""))
    code = "import os, time\nif not os.fork():\n    print(os.getpid()); time.sleep(600)\ntime.sleep(0.5)"
    result = sandbox.run_untrusted(code, 60, insist=True)
    assert alive(result.output) == [] and (result.passed or result.reason.startswith("BlockingIOError"))


@kernel
def test_what_can_not_be_applied_is_an_error(monkeypatch):
    monkeypatch.setattr(sandbox_child, "landlock_abi", lambda: 7)
    found = sandbox._python()
    monkeypatch.setattr(sandbox, "_python", lambda: (*found[:2], ["/no/such/folder"]))
    with pytest.raises(RuntimeError, match="the sandbox did not start: .*No such file"):
        sandbox.run_untrusted("pass")


@kernel
def test_bubblewrap_stands_in_for_landlock(monkeypatch, tmp_path):
    if not sandbox._bubblewrap():
        pytest.skip("bubblewrap is not installed, or may not make namespaces here")
    monkeypatch.setattr(sandbox_child, "landlock_abi", lambda: 0)
    (tmp_path / "precious.txt").write_text("secret")
    code = ("import os\nopen('a', 'w').write('x')\nprint(os.listdir())\n"
            f"open({str(tmp_path / 'precious.txt')!r})")
    result = sandbox.run_untrusted(code, 60)
    assert result.protections["files"] == "bubblewrap" and result.output == "['a']\n"
    assert result.reason.startswith("FileNotFoundError")
    assert sandbox.run_untrusted("pass", 60).passed
    refused("import os\nos.fork()"), refused("import socket\nsocket.socket()")
    assert sandbox.run_untrusted("while True: pass", 0.3).reason == "time limit of 0.3 s exceeded"
