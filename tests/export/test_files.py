"""Sources of an export, and the processes that convert them."""
import errno
import json
import os
import shutil

import pytest
from torch import nn

from course_lib.export import files


@pytest.mark.parametrize("missing, words", [
    ("tokenizer.json", "holds no tokenizer"), ("config.json", "holds no config.json"),
    ("model.safetensors", r"holds no \*.safetensors .*pickles")])
def test_a_folder_with_something_missing(tiny_folder, tmp_path, missing, words):
    folder = shutil.copytree(tiny_folder, tmp_path / "partial")
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=words), files.as_folder(folder):
        pass


def test_a_tokenizer_can_be_given_for_a_folder_without_one(tiny, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "partial")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with files.as_folder(folder, tiny[1]) as source:
        assert source != folder and files.check_folder(source).name == "partial"
        assert (source / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        assert json.loads((source / "tokenizer.json").read_text())["model"]["vocab"] == tiny[1].get_vocab()
        assert not (source / "tokenizer_config.json").is_symlink()
    assert not source.exists() and not list(folder.glob("tokenizer*"))


def test_what_is_no_source_is_named(tiny):
    for source, words in (("owner/model", "hub id 'owner/model'; load it first"),
                          (nn.Linear(2, 2), "is a Linear"), (tiny[0], "tokenizer is missing")):
        with pytest.raises(ValueError, match=words), files.as_folder(source):
            pass


@pytest.mark.parametrize("code, error, words", [
    ("files.report_failure(ValueError('a bad layer'))", ValueError, "a bad layer"),
    ("files.report_failure(FileNotFoundError(2, 'No such file', 'x'))", OSError, "No such file"),
    ("files.report_failure(KeyError('name'))", RuntimeError, "name"),
    ("raise SystemError('broken')", RuntimeError, "the work failed: SystemError: broken"),
    (f"print({os.strerror(errno.ENOSPC)!r}, file=sys.stderr)", OSError, "No space left"),
    ("pass", RuntimeError, "the work failed: it ended with code 3"),
])
def test_the_last_words_of_a_process_become_an_error(tmp_path, monkeypatch, code, error, words):
    imports = "import sys\nfrom course_lib.export import files"
    (tmp_path / "work.py").write_text(f"{imports}\n{code}\nsys.exit(3)\n")
    with pytest.raises(error, match=words):
        files.run_module(["work"], "the work", first_path=tmp_path)


def test_a_process_looks_into_the_first_path_first_and_stays_offline(tmp_path):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "__init__.py").write_text("name = 'its own'")
    (tmp_path / "work.py").write_text("import gguf, os; print(gguf.name, os.environ['HF_HUB_OFFLINE'])")
    assert files.run_module(["work"], "the work", first_path=tmp_path).strip() == "its own 1"
