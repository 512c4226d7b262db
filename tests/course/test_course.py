"""`course.py`: one sentence for every failure, no pip on a second start, and a real set-up with no index."""
import ast
import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import course  # noqa: E402


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A course in a folder with a space in its name: two lessons in English, one in Korean."""
    root = tmp_path / "a course"
    for name in ("en/01_first", "en/02_second", "ko/01_first"):
        path = root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    venv = root / ".venv"
    places = {"ROOT": root, "VENV": venv, "STAMP": venv / "course-stamp.txt", "LOG": venv / "log"}
    for name, value in places.items():
        monkeypatch.setattr(course, name, value)
    monkeypatch.setattr(course, "has_nvidia_gpu", lambda: True)  # no look at the network
    return root


@pytest.fixture
def programs(clone, monkeypatch):
    """Every program that course.py would start, in order: none runs; `python -m venv` leaves a file."""
    started = []

    def note(command, *rest, **keywords):
        started.append([str(part) for part in command])
        if "venv" in started[-1]:
            course.venv_python().parent.mkdir(parents=True)
            course.venv_python().write_text("")
        healthy = course.venv_python().exists()
        return SimpleNamespace(returncode=0 if healthy else 1, stdout=b"")

    monkeypatch.setattr(course.subprocess, "run", note)
    monkeypatch.setattr(course, "pip", lambda arguments, env, failure: note(["pip", *arguments]))
    monkeypatch.setattr(course, "call", lambda command, env, patient=False: 0 if note(command) else 1)
    return started


def sentence(capsys):
    """What went to stderr: one line, no traceback."""
    text = capsys.readouterr().err.strip()
    assert text.startswith("course.py: ") and "Traceback" not in text and "\n" not in text, text
    return text


def pip_calls(programs):
    return [command for command in programs if command[0] == "pip"]


# ---- the Python and the machine ----------------------------------------------------------------------------

def test_old_pythons_can_read_the_file():
    ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 6), (3, 9), (3, 14)])
def test_wrong_python_gets_one_sentence(version):
    code = (f"import sys, runpy; sys.version_info = {(*version, 1, 'final', 0)}; "
            "sys.argv = ['course.py', 'lab']; runpy.run_path('course.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"Python {version[0]}.{version[1]}," in done.stderr


@pytest.mark.parametrize("system, machine, windows, word", [
    ("darwin", "x86_64", False, "Intel"), ("win32", "ARM64", True, "ARM")])
def test_machines_without_pytorch(system, machine, windows, word, monkeypatch):
    monkeypatch.setattr(course.sys, "platform", system)
    monkeypatch.setattr(course.platform, "machine", lambda: machine)
    monkeypatch.setattr(course, "is_windows", lambda: windows)
    with pytest.raises(course.Stop, match=word):
        course.check_machine()


def test_python_without_venv(monkeypatch):
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(course.Stop, match="python3-venv"):
        course.check_machine()


def test_windows_paths(monkeypatch):
    assert course.venv_python() == ROOT / ".venv" / "bin" / "python" or course.is_windows()
    monkeypatch.setattr(course, "is_windows", lambda: True)
    assert course.venv_python() == ROOT / ".venv" / "Scripts" / "python.exe"


def test_disk_space(clone, programs, monkeypatch, capsys):
    monkeypatch.setattr(course.shutil, "disk_usage", lambda path: SimpleNamespace(free=1.5e9))
    assert course.main(["run", "01"]) == 1
    assert "1.5 GB free" in sentence(capsys)
    assert not course.VENV.exists() and not pip_calls(programs)


# ---- the command line --------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, words", [
    (["run", "01", "07"], "no lesson '07'; known are 01, 02"),
    (["run", "02", "--lang", "ko"], "no lesson '02'; known are 01."),
    (["run", "first"], "known are 01, 02"),
    (["progress", "07"], "no lesson '07'; known are 01, 02"),
    (["frobnicate"], "frobnicate"),
    (["lab", "--lang", "fr"], "'fr'"),
    (["test", "--wheelhouse", "no/such/folder"], "no wheels"),
])
def test_wrong_commands_stop_before_any_set_up(argv, words, programs, capsys):
    assert course.main(argv) == 2
    assert words in sentence(capsys)
    assert programs == []


def test_no_command_shows_the_commands(capsys):
    with pytest.raises(SystemExit, match="2"):
        course.main([])
    assert "python course.py lab" in capsys.readouterr().out


def test_commands_start_what_they_should(clone, programs):
    assert course.main(["run", "1", "02"]) == 0
    assert programs[-2][1:] == ["-m", "tools.fetch"]
    assert programs[-1][1:] == ["-m", "tools.pairs", "run", "01", "02", "--lang", "en"]
    mine = clone / "my copy.ipynb"
    assert course.main(["progress", "2", str(mine), "--lang", "en"]) == 0
    assert programs[-1][1:] == ["-m", "tools.progress", "02", str(mine), "--lang", "en"]
    assert course.main(["progress", "--lang", "ko"]) == 0
    assert programs[-1][1:] == ["-m", "tools.progress", "--lang", "ko"]
    assert course.main(["lab", "--lang", "ko", "--no-browser"]) == 0
    assert {"--LabApp.default_url=/lab/tree/notebooks/ko/01_first.ipynb", "--no-browser"} < set(programs[-1])
    assert course.main(["test", "--quick"]) == 0
    assert programs[-2][1:] == ["-m", "ruff", "check", "."]
    assert programs[-1][1:4] == ["-m", "pytest", "tests"]
    assert course.main(["test"]) == 0
    assert programs[-2][1:4] == ["-m", "pytest", "tests"]
    assert {"notebooks", "--nbval", "--nbval-current-env"} < set(programs[-1])
    assert course.main(["bench"]) == 0
    assert programs[-1][1:] == ["-m", "bench"]


def test_exit_status_is_passed_on(clone, programs, monkeypatch):
    monkeypatch.setattr(course, "call",
                        lambda command, env, patient=False: 3 if "tools.pairs" in command else 0)
    assert course.main(["run", "01"]) == 3
    monkeypatch.setattr(course, "call", lambda command, env, patient=False: 1)  # the model can't be fetched
    with pytest.raises(SystemExit, match="1"):
        course.main(["run", "01"])


@pytest.mark.parametrize("failing", ["ruff", "tests", "notebooks"])
def test_any_failure_fails_the_tests(failing, clone, monkeypatch):
    started = []

    def call(command, env, patient=False):
        started.append(command[2:4])
        assert "pytest" not in command or env["COURSE_QUIET"] == "1"  # bars would be outputs of the notebooks
        return int(failing in command)

    monkeypatch.setattr(course, "call", call)
    assert course.main(["test"]) == 1
    assert started[-3:] == [["ruff", "check"], ["pytest", "tests"], ["pytest", "notebooks"]]


def test_ctrl_c(clone, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt
    monkeypatch.setattr(course, "set_up", interrupted)
    assert course.main(["run", "01"]) == 130
    assert "Ctrl-C" in sentence(capsys)


def test_full_disk(clone, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device", "somewhere")
    monkeypatch.setattr(course, "set_up", full)
    assert course.main(["run", "01"]) == 1
    assert "No space left on device (somewhere)" in sentence(capsys)


# ---- the stamp, and what heals -----------------------------------------------------------------------------

def test_second_start_calls_no_pip(clone, programs):
    course.set_up()
    assert len(pip_calls(programs)) == 2 and course.is_set_up()
    programs.clear()
    course.set_up()
    assert programs == []


@pytest.mark.parametrize("change", ["pyproject.toml", "constraints.txt", "python", "folder"])
def test_a_change_sets_up_again(change, clone, programs, monkeypatch):
    course.set_up()
    if change == "python":
        monkeypatch.setattr(course.sys, "version_info", (3, 12, 0, "final", 0))
    elif change == "folder":
        monkeypatch.setattr(course, "ROOT", shutil.copytree(clone, clone.with_name("moved")))
    else:
        (clone / change).write_text("other\n")
    assert not course.is_set_up()


def test_line_ends_change_nothing(clone):
    before = course.stamp()
    (clone / "constraints.txt").write_bytes(b"torch==2.13.0\r\n")  # as git checks it out on Windows
    assert course.stamp() == before


def test_interrupted_install_leaves_no_stamp(clone, programs, monkeypatch):
    def broken(arguments, env, failure):
        raise course.Stop("pip failed")
    healthy = course.pip
    monkeypatch.setattr(course, "pip", broken)
    with pytest.raises(course.Stop):
        course.set_up()
    assert not course.STAMP.exists()
    monkeypatch.setattr(course, "pip", healthy)
    programs.clear()
    course.set_up()
    assert not any("venv" in command for command in programs), "a sound .venv is kept"
    assert course.is_set_up()


def test_half_made_venv_is_made_anew(clone, programs):
    leftover = course.VENV / "lib" / "leftover"
    leftover.mkdir(parents=True)  # no Python in it yet
    course.set_up()
    assert not leftover.exists() and course.is_set_up()


def test_half_copied_package_is_seen(clone, programs):
    course.set_up()
    package = course.VENV / "lib" / "python3.11" / "site-packages" / "torch-2.13.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("")
    assert not course.is_healthy()
    (package / "RECORD").write_text("")
    assert course.is_healthy()


# ---- pip ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("output, offline, words", [
    ("WARNING: Retrying after connection broken by 'NewConnectionError'\n"
     "ERROR: No matching distribution", False, "index can't be reached"),
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", False,
     "disk is full"),
    ("ERROR: No matching distribution found for torch", True, "missing in the wheelhouse: No matching"),
    ("ERROR: something new", False, "pip stopped with: something new"),
    ("", False, "pip said nothing"),
])
def test_why_pip_failed(output, offline, words):
    assert words in course.pip_reason(output.splitlines(), offline)


def test_failing_pip_is_one_sentence_and_a_log(clone, monkeypatch, capsys):
    course.VENV.mkdir()
    monkeypatch.setattr(course, "venv_python", lambda: Path(sys.executable))
    monkeypatch.setattr(course, "make_venv", lambda needed: None)
    offline = course.child_environment(clone)
    monkeypatch.setattr(course, "child_environment", lambda wheelhouse=None: offline)
    assert course.main(["run", "01"]) == 1
    text = sentence(capsys)
    assert "could not be installed because" in text and str(course.LOG) in text
    assert "ERROR" in course.LOG.read_text() and not course.STAMP.exists()


def test_wheelhouse_closes_every_other_way(monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "elsewhere")
    env = course.child_environment(ROOT / "two words")
    assert env["PIP_NO_INDEX"] == "1" and env["PIP_CONFIG_FILE"] == os.devnull
    assert env["PIP_FIND_LINKS"].startswith("file://") and env["PIP_FIND_LINKS"].endswith("two%20words")
    assert not any("elsewhere" == value for value in env.values())


def test_wheelhouse_fetches_packages_and_model(clone, programs, tmp_path, capsys):
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("torch-1-py3-none-any.whl", "course_lib-0.1.0-py3-none-any.whl"):
        (folder / name).write_text("")
    assert course.main(["wheelhouse", str(folder)]) == 0
    calls = pip_calls(programs)
    assert any(call[1] == "wheel" and f".[{course.EXTRAS}]" in call and "pip" in call for call in calls)
    assert ["pip", "download", "--no-deps", "--dest", str(folder), *course.OPENED_WHEELS] in calls
    left = [path.name for path in folder.iterdir()]
    assert left == ["torch-1-py3-none-any.whl"], "an old course must not shadow this one"
    assert "1 wheels" in capsys.readouterr().out


@pytest.mark.parametrize("wheel", course.OPENED_WHEELS)
def test_the_wheelhouse_takes_along_what_the_package_opens(wheel):
    files = (ROOT / "course_lib" / "offline_models.py", ROOT / "course_lib" / "export" / "gguf.py")
    assert any(f'"{wheel}"' in path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize("page, expected", [
    ('<a href="torch-2.13.0%2Bcpu-{py}-{py}-manylinux_2_28_{machine}.whl">', True),
    ('<a href="torch-2.12.0%2Bcpu-{py}-{py}-manylinux_2_28_{machine}.whl">', False),
    (None, False),
])
def test_cpu_build_of_torch_only_where_it_is_offered(page, expected, clone, monkeypatch):
    def answer(url, timeout):
        if page is None:
            raise OSError("unreachable")
        text = page.format(py="cp{}{}".format(*sys.version_info[:2]), machine=course.platform.machine())
        return contextlib.nullcontext(SimpleNamespace(read=text.encode))
    monkeypatch.setattr(course, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr(course, "sys", SimpleNamespace(platform="linux", version_info=sys.version_info))
    monkeypatch.setattr(course.urllib.request, "urlopen", answer)
    wanted = ["torch==2.13.0+cpu", "--extra-index-url", course.TORCH_CPU_INDEX]
    assert course.torch_arguments() == (wanted if expected else [])


# ---- for real ----------------------------------------------------------------------------------------------

def write_wheel(folder, name, version, files):
    """A minimal wheel, written by hand: a zip with the files, METADATA, WHEEL and RECORD."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


BACKEND = '''
import zipfile
def get_requires_for_build_editable(settings=None): return []
def build_editable(folder, settings=None, metadata=None):
    name, info = "course_lib-0.1.0-py3-none-any.whl", "course_lib-0.1.0.dist-info"
    extras = "".join(f"Provides-Extra: {extra}\\n" for extra in ("quant", "deploy", "eval", "dev"))
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("course_lib.pth", ROOT + "\\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: course_lib\\nVersion: 0.1.0\\n"
                       + extras + "Requires-Dist: tinydep>=1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
'''


def test_a_set_up_with_the_index_switched_off(tmp_path):
    """A real venv and a real pip, with nothing to install from but hand-made wheels."""
    root, wheels = tmp_path / "a course", tmp_path / "the wheels"
    (root / "course_lib").mkdir(parents=True)
    (root / "notebooks" / "en").mkdir(parents=True)
    wheels.mkdir()
    shutil.copy(ROOT / "course.py", root)
    (root / "notebooks" / "en" / "01_tiny.ipynb").write_text("{}")
    (root / "constraints.txt").write_text("tinydep==1.0\n")
    (root / "backend.py").write_text(f"ROOT = {str(root)!r}\n{BACKEND}")
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "course_lib"\nversion = "0.1.0"\ndependencies = ["tinydep>=1"]\n'
        '[project.optional-dependencies]\nquant = []\ndeploy = []\neval = []\ndev = []\n')
    (root / "course_lib" / "__init__.py").write_text("")
    (root / "tools").mkdir()
    (root / "tools" / "fetch.py").write_text("import os; print(os.environ['PIP_FIND_LINKS'])")
    (root / "tools" / "pairs.py").write_text(
        "import sys, tinydep; print('lesson', sys.argv[1:], tinydep.WORD)")
    write_wheel(wheels, "tinydep", "1.0", {"tinydep.py": "WORD = 'offline'\n"})
    # the set-up also asks for pip, which the venv has, and for setuptools
    write_wheel(wheels, "setuptools", "99.0", {"setuptools/__init__.py": ""})
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("PIP_", "COURSE_"))}
    environment.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", http_proxy="http://127.0.0.1:9",
                       https_proxy="http://127.0.0.1:9")
    command = [sys.executable, "course.py", "run", "1", "--wheelhouse", str(wheels)]
    first = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    log = root / ".venv" / "install.log"
    assert first.returncode == 0, first.stderr + (log.read_text() if log.exists() else "")
    assert "lesson ['run', '01', '--lang', 'en'] offline" in first.stdout
    assert wheels.as_uri() in first.stdout, "the model's download must look in the wheelhouse as well"

    noted = log.read_text()
    again = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "Installing" not in again.stdout and log.read_text() == noted

    shutil.rmtree(root / ".venv")
    next(wheels.glob("tinydep*")).unlink()
    broken = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert broken.returncode == 1 and broken.stderr.count("\n") == 1
    assert "missing in the wheelhouse" in broken.stderr and "No version of tinydep" in broken.stderr
