"""The npm packages of the page, installed once by `npm ci`.

`package-lock.json` pins each package by version and SHA-512, and npm refuses any other file. No script of
a package runs, and only the files that the page loads are kept. After a change of package.json, run here:

    npm install --package-lock-only --omit-lockfile-registry-resolved

Sources: npm's documentation of `npm ci`, and
    https://onnxruntime.ai/docs/tutorials/web/deploy.html (which files)
    https://github.com/huggingface/tokenizers.js
    https://github.com/huggingface/huggingface.js/tree/main/packages/jinja
"""
from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from course_lib.runtime import cache_dir, replacing

PROJECT = Path(__file__).resolve().parent  # with package.json and package-lock.json
FILES = (
    "onnxruntime-web/dist/ort.wasm.min.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "@huggingface/jinja/dist/index.js",
)
OTHERWISE = "or name a folder that has the packages: --modules DIR"


def fetch_modules() -> Path:
    """Return the cached folder with `FILES`; install it first if needed (37 MB to download, 15 are kept).

    Raises:
        FileNotFoundError: npm is not installed.
        ConnectionError: npm could not fetch a package.
        ValueError: a package is not the pinned one.
        OSError: the disk is full.
    """
    lock = (PROJECT / "package-lock.json").read_bytes()
    folder = cache_dir() / "browser" / f"modules-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not missing_files(folder):
        return folder
    npm = shutil.which("npm")  # npm.cmd under Windows
    if npm is None:
        raise FileNotFoundError("the page needs npm packages, and npm is not installed: install Node.js, "
                                f"which brings it, {OTHERWISE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # a second process waits; the folder appears only when it is complete
        if missing_files(folder):
            with replacing(folder, mark=FILES[0]) as modules, tempfile.TemporaryDirectory() as work:
                installed = _install(npm, Path(work))
                for file in FILES:
                    (modules / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(installed / file, modules / file)
    return folder


def _install(npm: str, work: Path) -> Path:
    """Run `npm ci` in the empty folder `work`; return its node_modules."""
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(PROJECT / name, work / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    try:
        result = subprocess.run(command, cwd=work, capture_output=True, encoding="utf-8", errors="replace",
                                timeout=900, check=False)
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"npm did not answer within 15 minutes: try again, {OTHERWISE}") from None
    missing = missing_files(work / "node_modules")
    if result.returncode == 0 and not missing:
        return work / "node_modules"
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    reason = " ".join(lines[:2])[:400] or f"{', '.join(missing)} did not come"
    if "EINTEGRITY" in result.stderr:
        raise ValueError(f"a package is not what package-lock.json pins; nothing of it was kept: {reason}")
    raise ConnectionError(f"npm could not fetch the page's packages: {reason}. Connect to the network and "
                          f"try again, {OTHERWISE}")


def missing_files(modules: Path) -> list[str]:
    """Return those of `FILES` that `modules` lacks, a folder laid out like node_modules."""
    return [file for file in FILES if not (modules / file).is_file()]
