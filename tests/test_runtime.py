"""Profiles, language, strings, cache folder, and how quick and quiet the package is."""
import json
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

import course_lib
from course_lib import runtime

PACKAGE = Path(course_lib.__file__).parent


def test_importing_the_package_loads_nothing_heavy():
    code = ("import sys, course_lib, course_lib.catalog, course_lib.loading, course_lib.lessons, course_lib.show;"
            "print([name for name in ('torch', 'transformers', 'pandas', 'matplotlib', 'datasets') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", course_lib.__all__)
def test_every_public_name_is_there(name):
    assert getattr(course_lib, name) is not None


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has load, chat"):
        course_lib.laod  # noqa: B018


@pytest.fixture
def fresh_profile(monkeypatch):
    """`profile` decides anew, with a GPU of so many GiB (None: no GPU) as torch reports it."""
    import torch

    def use(gibibytes=None, wanted=None):
        runtime.profile.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gibibytes is not None)
        monkeypatch.setattr(torch.cuda, "get_device_properties",
                            lambda index: type("Properties", (), {"total_memory": (gibibytes or 0) * 2**30}))
        if wanted is None:
            monkeypatch.delenv("COURSE_PROFILE", raising=False)
        else:
            monkeypatch.setenv("COURSE_PROFILE", wanted)
        return runtime.profile

    yield use
    runtime.profile.cache_clear()


@pytest.mark.parametrize("gibibytes, wanted, expected", [(None, None, "cpu"), (15, None, "colab"), (80, None, "gpu"),
                                                         (80, "colab", "colab"), (80, "cpu", "cpu")])
def test_the_profile_follows_the_machine_unless_told(fresh_profile, gibibytes, wanted, expected):
    assert fresh_profile(gibibytes, wanted)().name == expected


@pytest.mark.parametrize("wanted, words", [("tpu", "must be one of cpu, colab, gpu"), ("gpu", "torch sees none")])
def test_an_impossible_profile_is_named(fresh_profile, wanted, words):
    with pytest.raises(ValueError, match=words):
        fresh_profile(None, wanted)()


def test_every_profile_names_models_of_the_catalog():
    from course_lib import catalog

    for profile in runtime.PROFILES.values():
        assert catalog.get(profile.model).parameters < catalog.get(profile.larger_model).parameters


@pytest.mark.parametrize("platform, variable, expected", [
    ("linux", "XDG_CACHE_HOME", "slm-course"), ("win32", "LOCALAPPDATA", "slm-course"),
    ("linux", "COURSE_CACHE", "")])
def test_the_cache_folder(monkeypatch, tmp_path, platform, variable, expected):
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert runtime.cache_dir() == tmp_path / expected


def test_the_language_is_checked_and_used():
    runtime.set_language("ko")
    assert runtime.text("check.right", id="01.1") == "연습 문제 01.1: 정답입니다!"
    with pytest.raises(ValueError, match="lang is 'fr'; it must be one of en, ko"):
        runtime.set_language("fr")


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key, texts", sorted(runtime._strings().items()))
def test_every_string_has_both_languages_with_the_same_fields(key, texts):
    assert set(texts) == {"en", "ko"}
    assert fields(texts["en"]) == fields(texts["ko"])
    assert not re.search("[\uac00-\ud7a3]", texts["en"])


def test_every_string_is_used():
    """In the package or in a lesson's code; keys put together at run time, such as f"catalog.head.{key}", by their prefix."""
    notebooks = [json.loads(path.read_text("utf-8")) for path in (PACKAGE.parent / "notebooks" / "en").rglob("*.ipynb")]
    cells = ["".join(cell["source"]) for notebook in notebooks for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join([path.read_text("utf-8") for path in PACKAGE.rglob("*.py")] + cells)
    prefixes = set(re.findall(r"""f["']([\w.]+)\.\{""", code)) | set(re.findall(r"""["']([\w.]+)\.["'] \+""", code))
    unused = [key for key in runtime._strings()
              if not re.search(rf"""["']{re.escape(key)}["']""", code) and key.rpartition(".")[0] not in prefixes]
    assert unused == []


def test_set_seed_repeats_a_draw():
    import torch

    draws = []
    for _ in range(2):
        runtime.set_seed(7)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_setup_prints_one_line_in_its_language(capfd):
    from course_lib import lessons

    lessons.setup(lang="ko")
    captured = capfd.readouterr()
    assert captured.out.startswith("프로필 cpu · CPU 스레드") and captured.out.count("\n") == 1
    assert captured.err == "" and runtime.language() == "ko"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_kept_memory_is_not_mapped_anew():
    """Page faults of allocating and filling 64 MB ten times, in a process of its own."""
    code = """
import resource, sys, torch
from course_lib import runtime
if sys.argv[1] == "keep":
    assert runtime.keep_freed_memory()
for _ in range(10):  # until the heap has found its size
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {mode: int(subprocess.run([sys.executable, "-c", code, mode], check=True, capture_output=True, text=True).stdout)
              for mode in ("keep", "default")}
    assert faults["keep"] < faults["default"] / 10
