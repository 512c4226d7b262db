"""pyproject.toml, constraints.txt, environment.yml, course.py and the CI files say the same."""
import ast
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import course  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = {"linux": ("Linux", "x86_64", "posix"), "darwin": ("Darwin", "arm64", "posix"),
           "win32": ("Windows", "AMD64", "nt")}


def requirements():
    """Every direct dependency, of the core and of the extras."""
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


def pins():
    """The lines of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def environment(python, system):
    """What a marker sees on that Python and system."""
    platform_system, machine, os_name = SYSTEMS[system]
    return {
        **default_environment(),
        "python_version": python,
        "python_full_version": python + ".9",
        "sys_platform": system,
        "platform_system": platform_system,
        "platform_machine": machine,
        "os_name": os_name,
    }


def applies(requirement, where):
    return requirement.marker is None or requirement.marker.evaluate(where)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_dependency_has_one_pin_inside_its_range(python, system):
    where = environment(python, system)
    for requirement in requirements():
        if not applies(requirement, where):
            continue
        name = canonicalize_name(requirement.name)
        fitting = [pin for pin in pins() if canonicalize_name(pin.name) == name and applies(pin, where)]
        assert len(fitting) == 1, f"{name} has {len(fitting)} pins for Python {python} on {system}"
        version = str(fitting[0].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{fitting[0]} is outside of {requirement}"


def imported_modules():
    """Top-level modules that the package, the tests and the notebooks import -> a place where."""
    folders = ("course_lib", "tools", "bench", "demos", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    for path in (ROOT / "notebooks").rglob("[0-9]*.ipynb"):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        sources[path] = re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M)
    found = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            found.update({name.split(".")[0]: path for name in names})
    return found


def test_every_import_is_a_declared_dependency():
    """A package that only happens to be installed here is missing on a learner's machine."""
    modules = {"scikit-learn": "sklearn", "pyyaml": "yaml", "websocket-client": "websocket"}
    declared = {canonicalize_name(one.name) for one in requirements()}
    declared = {modules.get(name, name.replace("-", "_")) for name in declared}
    # google.colab is Colab's own, conversion lies in the wheel of llama.cpp's converter
    own = {"course", "course_lib", "google", "conversion", "tools", "bench", "demos", "tests"}
    unknown = {name: path.name for name, path in imported_modules().items()
               if name.lower() not in declared | own and name not in sys.stdlib_module_names}
    assert not unknown, f"missing in pyproject.toml: {unknown}"


def test_constraints_are_exact():
    for pin in pins():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)) and not pin.extras, f"{pin} is no exact version"


def test_the_installed_set_is_the_tested_set():
    """The versions here are those of constraints.txt: what runs is what is pinned."""
    from importlib.metadata import version

    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes", "nbval"):
        pin = next(pin for pin in pins()
                   if canonicalize_name(pin.name) == name and applies(pin, default_environment()))
        found = version(name)
        assert pin.specifier.contains(found), f"{name} {found} is installed, and {pin} is pinned"


def test_pythons_agree():
    allowed = SpecifierSet(PROJECT["requires-python"])
    text = (ROOT / "course.py").read_text(encoding="utf-8")
    oldest, newest = re.search(r"not \(3, (\d+)\) <= sys.version_info\[:2\] <= \(3, (\d+)\)", text).groups()
    for minor in range(8, 16):
        assert allowed.contains(f"3.{minor}.0") == (int(oldest) <= minor <= int(newest)), f"Python 3.{minor}"
    conda_python = next(line for line in conda()["dependencies"] if str(line).startswith("python="))
    assert allowed.contains(conda_python.split("=")[1] + ".0")


def conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def test_conda_installs_what_course_py_installs():
    lines = next(line["pip"] for line in conda()["dependencies"] if isinstance(line, dict))
    assert lines == [f"-e .[{course.EXTRAS}]", "-c constraints.txt"]
    assert "pip" in conda()["dependencies"]


def test_extras_agree():
    assert {*course.EXTRAS.split(","), "parity"} == set(PROJECT["optional-dependencies"])


def test_needed_without_a_compiler():
    """What has no wheel and holds C or Rust code stays out of what every set-up installs."""
    installed = [line for extra in course.EXTRAS.split(",")
                 for line in PROJECT["optional-dependencies"][extra]]
    compiled = ("gptqmodel", "pypcre", "llama-cpp-python")
    assert not [line for line in [*PROJECT["dependencies"], *installed] if line.startswith(compiled)]


def test_ci_and_workflows_call_course_py():
    assert "course.py test" in (ROOT / ".ci" / "run").read_text()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        for name, job in jobs.items():
            uses = [step["uses"] for step in job["steps"] if "uses" in step]
            runs = [step["run"] for step in job["steps"] if "run" in step]
            pinned = re.compile(r"@v\d+\.\d+\.\d+$|@[0-9a-f]{40}$")
            assert all(pinned.search(action) for action in uses), f"{path.name}: {uses}"
            ours = [command for command in runs if command.startswith("python course.py ")]
            assert runs and ours == runs, f"{path.name}: {name}"
            for command in runs:
                course.parse(command.replace("${{ matrix.lang }}", "ko").split()[2:])


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the wheel's metadata holds README.md")
def test_a_wheel_holds_data_and_strings(tmp_path):
    """Build for real, from a copy, without the network."""
    copy = tmp_path / "copy"
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CONTENT", "course_lib/**/*.py",
                 "course_lib/*.json", "data/**/*"):
        for path in ROOT.glob(name):
            if path.is_file():
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    subprocess.run([*command, tmp_path, copy], check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("course_lib-*.whl"))).namelist()
    assert all(path.relative_to(ROOT).as_posix() in names for path in (ROOT / "course_lib").rglob("*.py"))
    assert "course_lib/strings.json" in names and "course_lib/course_data/catalog.json" in names
    for path in (ROOT / "data").rglob("*"):
        if path.is_file():
            assert f"course_lib/course_data/{path.relative_to(ROOT / 'data').as_posix()}" in names
