"""Profiles, language, strings, particles, files, cache folder, and how quick and quiet the package is."""
import json
import re
import subprocess
import sys

import pytest

import course_lib
from course_lib import runtime

HEAVY = ("torch", "transformers", "pandas", "matplotlib", "datasets")


def test_importing_the_package_loads_nothing_heavy():
    code = f"""
import sys, course_lib as cl, course_lib.models.catalog, course_lib.models.memory, course_lib.loading
cl.load, cl.chat, cl.estimate_memory, cl.recommend, cl.check, cl.models.get_card("smollm2-135m")
print([name for name in {HEAVY} if name in sys.modules])"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_loading_reads_no_benchmark_literature():
    code = "import sys, course_lib.loading; print('course_lib.models.published' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_every_public_name_is_there():
    missing = [name for name in course_lib.__all__ if getattr(course_lib, name, None) is None]
    for room in course_lib.ROOMS:
        names = getattr(course_lib, room)
        missing += [f"{room}.{name}" for name in names.__all__ if getattr(names, name, None) is None]
    assert missing == []


@pytest.fixture
def fresh_profile(monkeypatch):
    """`profile` decides anew, with a GPU of so many GiB (None: no GPU) as torch reports it."""
    import torch

    def use(gibibytes=None, wanted=None):
        runtime.profile.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gibibytes is not None)
        properties = type("Properties", (), {"total_memory": (gibibytes or 0) * 2**30})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        if wanted is None:
            monkeypatch.delenv("COURSE_PROFILE", raising=False)
        else:
            monkeypatch.setenv("COURSE_PROFILE", wanted)
        return runtime.profile

    yield use
    runtime.profile.cache_clear()


@pytest.mark.parametrize("gibibytes, wanted, expected", [
    (None, None, "cpu"), (15, None, "colab"), (80, None, "gpu"), (80, "colab", "colab"), (80, "cpu", "cpu")])
def test_the_profile_follows_the_machine_unless_told(fresh_profile, gibibytes, wanted, expected):
    assert fresh_profile(gibibytes, wanted)().name == expected


@pytest.mark.parametrize("wanted, words", [
    ("tpu", "must be one of cpu, colab, gpu"), ("gpu", "torch sees none")])
def test_an_impossible_profile_is_named(fresh_profile, wanted, words):
    with pytest.raises(ValueError, match=words):
        fresh_profile(None, wanted)()


def test_every_profile_names_models_of_the_catalog():
    from course_lib.models import cards

    for profile in runtime.PROFILES.values():
        assert cards.get_card(profile.model).parameters < cards.get_card(profile.larger_model).parameters


@pytest.mark.parametrize("platform, variable, expected", [
    ("linux", "XDG_CACHE_HOME", "slm-course"), ("win32", "LOCALAPPDATA", "slm-course"),
    ("linux", "COURSE_CACHE", "")])
def test_the_cache_folder(monkeypatch, tmp_path, platform, variable, expected):
    monkeypatch.delenv("COURSE_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert runtime.cache_dir() == tmp_path / expected


def test_a_missing_package_says_how_to_install_it():
    runtime.need_package("json", "1.0")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'no_such_package>=1\.2'"):
        runtime.need_package("no_such_package", "1.2")


# --- words

def test_the_language_is_checked_and_used():
    runtime.set_language("ko")
    assert runtime.text("check.right", id="01.1") == "연습 문제 01.1: 정답입니다!"
    with pytest.raises(ValueError, match="lang is 'fr'; it must be one of en, ko"):
        runtime.set_language("fr")
    with runtime.in_language("en"):
        assert runtime.language() == "en"
    assert runtime.language() == "ko"


def test_strings_are_in_their_language_and_their_particles_known():
    for key, texts in runtime._strings().items():
        assert not re.search("[\uac00-\ud7a3]", texts["en"]), key
        for pattern in re.findall(r"\}\W?(\([가-힣]{1,2}/[가-힣]{1,2}\))", texts["ko"]):
            assert runtime._PARTICLES.fullmatch(pattern), (key, pattern)


CONSONANTS = ("집", 0, 3, 6, 13, 1_006, "LLM", "N", "token", "string", "name", None, "모델(SLM)", "`쪽`",
              "“집”.", "[1, 3]")
RIEUL = ("모델", 1, 7, 8, "URL", "R", "r", "file", "model", "서울)")
VOWELS = ("나무", 2, 2.5, 4, 9, "GPU", "layer", True, "'나무'", "40%", "", "…")


def test_the_particle_fits_the_word():
    forms = {"이/가": "이가이", "은/는": "은는은", "을/를": "을를을", "과/와": "과와과"}
    for pair, (consonant, vowel, rieul) in forms.items():
        for words, particle in ((CONSONANTS, consonant), (VOWELS, vowel), (RIEUL, rieul)):
            assert {word: runtime.josa(word, pair) for word in words} == dict.fromkeys(words, particle), pair
    longer = {"으로/로": ("으로", "로", "로"), "이라/라": ("이라", "라", "이라")}
    for pair, particles in longer.items():
        for words, particle in zip((CONSONANTS, VOWELS, RIEUL), particles, strict=True):
            assert {word: runtime.josa(word, pair) for word in words} == dict.fromkeys(words, particle), pair


def test_a_pair_is_two_forms():
    with pytest.raises(ValueError):
        runtime.josa("집", "이")


def test_text_chooses_particles_in_korean_only(monkeypatch):
    both = {"en": "{name!r} and {size:.1f}(은/는)",
            "ko": "“{name}”(은/는) {size:.1f}(으로/로) {name!r}(과/와)"}
    monkeypatch.setattr(runtime, "_strings", lambda: {"key": both})
    assert runtime.text("key", name="모델", size=2) == "'모델' and 2.0(은/는)"
    runtime.set_language("ko")
    assert runtime.text("key", name="모델", size=2) == "“모델”은 2.0으로 '모델'과"
    assert runtime.text("key", name="나무", size=1.12) == "“나무”는 1.1로 '나무'와"


# --- files and processes

def test_a_file_is_written_whole_or_stays(tmp_path):
    path = tmp_path / "figures.json"
    runtime.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        runtime.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]


def test_set_seed_repeats_a_draw():
    import torch

    draws = []
    for _ in range(2):
        runtime.set_seed(7)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


def test_setup_prints_one_line_in_its_language(capfd):
    runtime.setup(lang="ko")
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
    faults = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", code, mode]
        faults[mode] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert faults["keep"] < faults["default"] / 10
