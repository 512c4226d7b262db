"""The npm packages of the page in the browser, fetched once and checked.

npm itself fetches them, from the registry that it is set up for, and runs no script of theirs. What arrives must be byte
for byte what is pinned here, whichever registry gave it; of each archive only the files that the page loads are kept.

Sources: https://docs.npmjs.com/cli/commands/npm-pack; https://onnxruntime.ai/docs/tutorials/web/deploy.html (which files);
    https://github.com/huggingface/tokenizers.js; https://github.com/huggingface/huggingface.js/tree/main/packages/jinja
"""
from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .exporting import replacing
from .runtime import cache_dir


@dataclass(frozen=True)
class Package:
    """One npm package: its version, npm's "dist.integrity" of that version, and the files that the page needs of it."""

    version: str
    integrity: str
    files: tuple[str, ...]


PACKAGES = {
    "onnxruntime-web": Package(
        "1.30.0", "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm")),
    "@huggingface/tokenizers": Package(
        "0.2.0", "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        ("dist/tokenizers.min.mjs",)),
    "@huggingface/jinja": Package(
        "0.5.10", "sha512-SgS1D1bglQ94ceD4ZCL6eayUDy9uV1xuyk61OjgSxU5GJh7upqZCKII0JoTYMc6wWsg3JUgaPRX0ElQzXPk3Cw==",
        ("dist/index.js",)),
}


def fetch_modules() -> Path:
    """The folder with the page's npm packages in the cache, fetched first if need be (34 MB, of which 15 are kept).

    npm asks the registry that it is set up for; no script of a package is run. A package that is not byte for byte the
    pinned one is refused, and the folder appears under its name only when it is whole.

    Raises:
        FileNotFoundError: npm is not installed. ConnectionError: npm could not fetch a package.
        ValueError: a package is not the pinned one. OSError: the disk is full.
    """
    folder = cache_dir() / "browser" / "-".join(["modules", *(package.version for package in PACKAGES.values())])
    if not missing_files(folder):
        return folder
    npm = shutil.which("npm")  # npm.cmd under Windows
    if npm is None:
        raise FileNotFoundError(f"the page needs npm packages ({', '.join(PACKAGES)}), and npm is not installed: install "
                                "Node.js, which brings it, or name a folder that has them: --modules DIR")
    with replacing(folder, mark="onnxruntime-web/dist/ort.wasm.min.mjs") as made:
        for name, package in PACKAGES.items():
            with tempfile.TemporaryDirectory(prefix="slm-course-") as work:
                _unpack(_pack(npm, name, package, Path(work)), package, made / name)
    return folder


def _pack(npm: str, name: str, package: Package, work: Path) -> Path:
    """The package's archive, as npm downloads it into `work`, checked."""
    command = [npm, "pack", "--ignore-scripts", "--loglevel=error", f"{name}@{package.version}"]
    try:
        result = subprocess.run(command, cwd=work, capture_output=True, encoding="utf-8", errors="replace",
                                timeout=900, check=False)
        log, failed = result.stderr, result.returncode != 0
    except subprocess.TimeoutExpired:
        log, failed = "no answer within 15 minutes", True
    archive = next(work.glob("*.tgz"), None)
    if failed or archive is None:
        reason = next((line for line in log.splitlines() if line.strip()), "it wrote no archive")
        raise ConnectionError(f"npm could not fetch {name}@{package.version}: {reason.strip()[:300]}. Connect to the network "
                              "and try again, or name a folder that has the packages: --modules DIR")
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise ValueError(f"{name}@{package.version} is not the pinned one: its integrity is {found}, and should be "
                         f"{package.integrity}; nothing of it was kept")
    return archive


def _unpack(archive: Path, package: Package, folder: Path) -> None:
    with tarfile.open(archive) as content:  # only the files that are named here: an archive can hold any path
        for name in package.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.extractfile(f"package/{name}").read())


def missing_files(modules: Path) -> list[str]:
    """The files of `PACKAGES` that are not in `modules`, a folder laid out as `node_modules` is."""
    paths = [f"{name}/{file}" for name, package in PACKAGES.items() for file in package.files]
    return [path for path in paths if not (modules / path).is_file()]
