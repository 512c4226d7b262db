"""The npm packages of the page: pinned, installed once, whole or not at all."""
import base64
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from demos.browser import modules

LOCK = (modules.PROJECT / "package-lock.json").read_text("utf-8")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def npm(monkeypatch):
    """An npm that installs files with the right names and notes its calls; `npm.error` makes it fail."""

    class Npm:
        calls = []
        error = None
        leaves = (*modules.FILES, "protobufjs/index.js")

        def run(self, command, cwd, **options):
            self.calls.append(command)
            assert (Path(cwd) / "package-lock.json").read_text("utf-8") == LOCK
            for file in self.leaves:
                path = Path(cwd) / "node_modules" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(file, encoding="utf-8")
            if isinstance(self.error, BaseException):
                raise self.error
            return subprocess.CompletedProcess(command, int(self.error is not None), "", self.error or "")

    npm = Npm()
    monkeypatch.setattr(modules.shutil, "which", lambda name: "/somewhere/npm.cmd" if name == "npm" else None)
    monkeypatch.setattr(modules.subprocess, "run", npm.run)
    return npm


def left_behind(tmp_path):
    return {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_packages_are_installed_once_and_only_what_the_page_needs_is_kept(npm, tmp_path):
    folder = modules.fetch_modules()
    assert left_behind(tmp_path) == {folder / file for file in modules.FILES}
    assert (folder / modules.FILES[0]).read_text() == modules.FILES[0]
    assert npm.calls[0][:2] == ["/somewhere/npm.cmd", "ci"] and "--ignore-scripts" in npm.calls[0]
    assert modules.fetch_modules() == folder and len(npm.calls) == 1


def test_a_folder_that_lost_a_file_is_installed_anew(npm):
    folder = modules.fetch_modules()
    (folder / "@huggingface/jinja/dist/index.js").unlink()
    assert modules.missing_files(modules.fetch_modules()) == []


def test_of_two_at_once_one_installs(npm, tmp_path):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(modules.fetch_modules())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 4 and len(set(folders)) == 1 and len(npm.calls) == 1
    assert left_behind(tmp_path) == {folders[0] / file for file in modules.FILES}


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (
            "npm error code ENOTFOUND\nnpm error no network\nmore",
            ConnectionError,
            "ENOTFOUND npm error no network. Conn",
        ),
        (
            "npm error code EINTEGRITY\nnpm error sha512-…",
            ValueError,
            "not what package-lock.json pins.*sha512",
        ),
        (subprocess.TimeoutExpired("npm", 900), ConnectionError, "within 15 minutes.*--modules DIR"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_what_goes_wrong_is_reported_and_leaves_nothing(npm, tmp_path, error, kind, words):
    npm.error = error
    with pytest.raises(kind, match=words or None):
        modules.fetch_modules()
    assert left_behind(tmp_path) == set()


def test_a_package_that_lacks_a_file_is_reported(npm, tmp_path):
    npm.leaves = modules.FILES[1:]
    with pytest.raises(ConnectionError, match="ort.wasm.min.mjs did not come"):
        modules.fetch_modules()
    assert left_behind(tmp_path) == set()


def test_without_npm_the_error_says_what_to_install(npm, monkeypatch):
    monkeypatch.setattr(modules.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm is not installed: install Node.js.*--modules DIR"):
        modules.fetch_modules()


def test_the_lock_pins_every_package_and_names_no_server():
    wanted = json.loads((modules.PROJECT / "package.json").read_text("utf-8"))["dependencies"]
    packages = {path.removeprefix("node_modules/"): package
                for path, package in json.loads(LOCK)["packages"].items() if path}
    assert {name: packages[name]["version"] for name in wanted} == wanted
    for package in packages.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"]) and "resolved" not in package
        assert len(base64.b64decode(package["integrity"].removeprefix("sha512-"), validate=True)) == 64
    assert {file.rpartition("/dist/")[0] for file in modules.FILES} == set(wanted)
    assert "://" not in LOCK


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm_refuses_an_altered_package(tmp_path, monkeypatch):
    """The real npm, where it reaches a registry: one package's hash is not that of what arrives."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copyfile(modules.PROJECT / "package.json", project / "package.json")
    pinned = json.loads(LOCK)["packages"]["node_modules/@huggingface/jinja"]["integrity"]
    other = "sha512-" + base64.b64encode(bytes(64)).decode()
    (project / "package-lock.json").write_text(LOCK.replace(pinned, other), encoding="utf-8")
    monkeypatch.setattr(modules, "PROJECT", project)
    try:
        with pytest.raises(ValueError, match="not what package-lock.json pins"):
            modules.fetch_modules()
    except ConnectionError as error:
        pytest.skip(str(error))
    assert left_behind(tmp_path / "cache") == set()
