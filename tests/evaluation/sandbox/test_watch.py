"""The limits that the parent watches (time, output, threads, scratch folder), and those of the kernel."""
import os

import pytest

from tests.evaluation.sandbox.common import LANDLOCKED, alive, kernel, refused, run


@pytest.mark.parametrize("code", [
    "import time; time.sleep(600)",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "import os, time; os.closerange(0, 64); time.sleep(600)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"])
def test_time_is_limited(code):
    if os.name == "nt" and "SIGSTOP" in code:
        pytest.skip("Windows can't stop a process")
    result = run(code, timeout=0.3)
    assert not result.passed and result.reason == "time limit of 0.3 s exceeded"
    assert 0.3 <= result.seconds < 30


def test_an_output_flood_is_cut_and_ended():
    result = run("print('ab' * 10)\nwhile True: print('é' * 999)", output_limit=4000)
    assert (result.passed, result.reason) == (False, "more than 4000 bytes of output")
    assert result.output.startswith("ab" * 10 + "\né") and 3990 <= len(result.output.encode()) <= 4000
    assert "\ufffd" not in result.output
    assert run("print('x' * 3999)", output_limit=4000).passed
    assert not run("print('x' * 4000)", output_limit=4000).passed


@kernel
def test_memory_is_limited():
    code = "held = []\nwhile True: held.append(bytearray(2**20))"
    assert run(code).reason == "MemoryError [code, line 2]"
    assert run("x = bytearray(300 * 2**20)").passed
    assert not run("x = bytearray(300 * 2**20)", memory_mb=200).passed


DAEMON = """import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid())
        time.sleep(600)
    os._exit(0)
time.sleep(1)
"""


@kernel
def test_a_daemon_does_not_survive():
    result = run(DAEMON)
    assert alive(result.output) == [] and result.reason.startswith("PermissionError")


@kernel
@pytest.mark.skipif(not LANDLOCKED, reason="bubblewrap hides the process whose threads are counted")
def test_threads_work_but_are_limited():
    code = ("import threading, time\nthreading.stack_size(65536)\n"
            "for _ in range({}): threading.Thread(target=time.sleep, args=({},)).start()\ntime.sleep({})")
    assert run(code.format(20, 0, 0)).passed
    assert run(code.format(500, 60, 60)).reason == "more than 64 threads"


@pytest.mark.parametrize("code", [
    "for n in range(40): open(str(n), 'wb').write(bytes(2**20))", "for n in range(10**6): open(str(n), 'w')",
    "import os\nwhile True: os.mkdir('d'); os.chdir('d')",
    "import os, time\nos.makedirs('a/b'); os.mkdir('a/b/c', 0); time.sleep(60)"])
def test_the_scratch_folder_is_limited_and_removed(code):
    if os.name == "nt" and "mkdir" in code:
        pytest.skip("Windows knows neither such depth nor such modes")
    if "0)" in code and hasattr(os, "geteuid") and os.geteuid() == 0:
        assert not run(code, timeout=1).passed  # root may look into it
    else:
        assert run(code).reason == "more than 16 MiB or 5000 entries in the scratch folder"


@kernel
def test_a_file_is_limited():
    code = "import os\nfile = open('x', 'wb')\nos.posix_fallocate(file.fileno(), 0, 17 * 2**20)"
    refused(code, "OSError: [Errno 27]")


def test_threads_left_over_neither_hold_up_nor_spoil_a_pass():
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\nprint('end')"
    result = run(code)
    assert result.passed and result.output == "end\n" and result.seconds < 50
