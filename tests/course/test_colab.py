"""The first cell of a lesson on Colab: it installs the course and keeps the torch that is there.

Colab is simulated by a fresh virtual environment that sees every library of the running one, except
course_lib, and holds an empty module `google.colab`. pip gets no index, only a folder with a newer "torch" to
be tempted by; the course comes from a copy of this checkout instead of from GitHub.
"""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from tools import notebooks

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt",
                                reason="the simulation links the libraries, and Colab is Linux")

RUN_CELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
result = InteractiveShell.instance().run_cell(open(sys.argv[1], encoding="utf-8").read())
result.raise_error()
"""
REPORT = """
import json
from importlib.metadata import version
import course_lib, torch
from course_lib.models.cards import get_card
print(json.dumps({"course_lib": course_lib.__file__,
                  "torch": [torch.__file__, torch.__version__, version("torch")],
                  "parameters": get_card("Qwen/Qwen2.5-7B").parameters}))
"""


@dataclass
class Colab:
    """A simulated machine: its folder, where pip installs, and its environment variables."""

    folder: Path
    site: Path
    environment: dict[str, str]

    def run(self, code: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [self.folder / "venv" / "bin" / "python", "-c", code, *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder / "content", env=self.environment, capture_output=True,
                              encoding="utf-8", timeout=500)

    def run_setup(self) -> subprocess.CompletedProcess:
        """Run the set-up cell of lesson 01, with a copy of this checkout in GitHub's place."""
        notebook = next((ROOT / "notebooks" / "en").glob("01_*.ipynb"))
        source = next(cell.source for cell in notebooks.read(notebook).cells if cell.cell_type == "code")
        address = f"git+https://github.com/{notebooks.repository()}"
        assert address in source
        cell = self.folder / "cell.py"
        cell.write_text(source.replace(address, (self.folder / "repository").as_uri()), encoding="utf-8")
        return self.run(RUN_CELL, cell)

    def pip_log(self) -> str:
        log = Path(self.environment["PIP_LOG"])
        return log.read_text(encoding="utf-8") if log.is_file() else ""


def link_libraries(folder: Path) -> None:
    """Links to all of the running environment's libraries, except this course.

    The folder lies outside the simulated environment: pip can neither write through a link nor remove one.
    """
    folder.mkdir()
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            if "course_lib" not in entry.name and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)


def tempting_torch(folder: Path) -> None:
    """An empty wheel of a torch a little newer than the one that is there, for a pip that would upgrade."""
    newer = ".".join(version("torch").split(".")[:2]) + ".999"
    info = f"torch-{newer}.dist-info"
    folder.mkdir()
    with zipfile.ZipFile(folder / f"torch-{newer}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {newer}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def colab(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    link_libraries(tmp_path / "libraries")
    (site / "libraries.pth").write_text(f"{tmp_path / 'libraries'}\n", encoding="utf-8")
    tempting_torch(tmp_path / "wheels")
    (tmp_path / "content").mkdir()
    left_out = (".*", "build", "dist", "wheel*", "notebooks", "tests", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "repository", ignore=shutil.ignore_patterns(*left_out))
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("PIP_", "PYTHON", "COURSE_"))}
    return Colab(
        tmp_path,
        site,
        {
            **kept,
            "HOME": str(tmp_path),
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "MPLCONFIGDIR": str(tmp_path / "mpl"),
            "COURSE_PROFILE": "cpu",
            "PYTHONUTF8": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_LOG": str(tmp_path / "pip.log"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
        },
    )


def versions_and_places(colab: Colab) -> dict:
    done = colab.run(REPORT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_set_up_installs_the_course_and_keeps_torch(colab):
    import torch

    (colab.site / "google" / "colab").mkdir(parents=True)
    (colab.site / "google" / "colab" / "__init__.py").touch()
    assert colab.run("import course_lib").returncode != 0

    done = colab.run_setup()
    assert done.returncode == 0, done.stdout + done.stderr + colab.pip_log()[-4000:]
    assert "profile cpu" in done.stdout

    found = versions_and_places(colab)
    assert Path(found["course_lib"]).is_relative_to(colab.site), "the installed course, not the checkout"
    assert found["parameters"] == 7_615_616_512, "the catalog is inside the wheel"
    assert Path(found["torch"][0]).resolve() == Path(torch.__file__).resolve()
    assert found["torch"][1:] == [torch.__version__, version("torch")]

    log = colab.pip_log()
    assert set(re.findall("collected packages: (.*)", log.replace("-", "_"))) == {"course_lib"}
    assert "Uninstalling" not in log


def test_set_up_elsewhere_fails_and_installs_nothing(colab):
    before = sorted(os.listdir(colab.site))
    done = colab.run_setup()
    assert done.returncode != 0
    assert "ModuleNotFoundError: No module named 'google" in done.stdout + done.stderr
    assert colab.pip_log() == "" and sorted(os.listdir(colab.site)) == before
