"""The page in the browser: its server, its packages, and a real answer in a real browser."""
import base64
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import urllib.request
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
from transformers import AutoTokenizer

from course_lib import browser, browser_modules, deploy

ROOT = Path(__file__).resolve().parent.parent
ASK = "What is the capital of France?"
PROMPTS = ["프랑스의 수도는 어디입니까?", "def f(x):\n\treturn x**2  # twice  \n", "  naïve 🙂 1234567 <|im_end|> "]
PATIENCE = 300  # seconds; a busy machine in CI takes long to load and to answer


@pytest.fixture
def fake_model(tmp_path):
    """A folder with the names of an ONNX export; the server does not look inside."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    for name in ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
                 "chat_template.jinja", "private.txt"):
        (folder / name).write_text(f"content of {name}", encoding="utf-8")
    return folder


@pytest.fixture
def fake_modules(tmp_path):
    folder = tmp_path / "node_modules"
    for path in browser_modules.missing_files(folder):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"content of {path}", encoding="utf-8")
    (folder / "onnxruntime-web" / "package.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def address(fake_model, fake_modules):
    with browser.serve_page(fake_model, modules=fake_modules) as address:
        yield address


def ask(address, path, method="GET", **headers):
    """Send exactly this path: urllib would tidy it up."""
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


# ---- the server ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path, kind", [
    ("/", "text/html"), ("/index.html?lang=ko", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript"),
    ("/texts.json", "application/json"), ("/model/tokenizer.json", "application/json"),
    ("/model/model.onnx.data", "application/octet-stream"), ("/%6dodel/model.onnx", "application/octet-stream"),
    ("/modules/@huggingface/jinja/dist/index.js", "text/javascript"),
    ("/modules/onnxruntime-web/dist/ort.wasm.min.mjs", "text/javascript"),
    ("/modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "application/wasm")])
def test_files_come_with_their_type_and_the_headers_that_threads_need(address, path, kind):
    status, headers, body = ask(address, path)
    assert status == 200 and body
    assert headers["Content-Type"].split(";")[0] == kind
    assert int(headers["Content-Length"]) == len(body)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert "Access-Control-Allow-Origin" not in headers
    status, head, nothing = ask(address, path, "HEAD")
    assert (status, head["Content-Length"], nothing) == (200, str(len(body)), b"")


@pytest.mark.parametrize("path", [
    "/nothing.html", "/model", "/model/", "/modules/", "/modules/onnxruntime-web/", "/model/private.txt",
    "/modules/onnxruntime-web/package.json", "/../browser/page.js", "/model/../model/model.onnx", "/model/..%2f..%2fREADME.md",
    "/..%2f..%2f..%2fREADME.md", "/%2e%2e/%2e%2e/%2e%2e/README.md", "//etc/passwd", "/etc/passwd", "/\\..\\..\\README.md",
    "/model/model.onnx%00.json"])
def test_nothing_else_can_be_fetched(address, path):
    status, headers, body = ask(address, path)
    assert status == 404 and b"content of" not in body
    assert headers["Content-Security-Policy"]


def test_other_names_for_this_machine_and_other_methods_are_refused(address):
    port = address.rstrip("/").rpartition(":")[2]
    assert ask(address, "/", Host=f"localhost:{port}")[0] == 200
    assert ask(address, "/", Host="localhost")[0] == 200  # the other end of a tunnel
    assert ask(address, "/", Host="evil.example")[0] == 404
    assert ask(address, "/", Host=f"127.0.0.1.evil.example:{port}")[0] == 404
    assert ask(address, "/", "POST")[0] == 501


def test_it_listens_on_this_machine_only_and_until_the_end_of_the_block(fake_model, fake_modules):
    with browser.serve_page(fake_model, modules=fake_modules) as address:
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        assert host == "127.0.0.1"
        with pytest.raises(OSError):  # on all interfaces it would answer here too
            socket.create_connection(("127.0.0.2", int(port)), 2).close()
        with pytest.raises(OSError, match=f"port {port} .* in use"), browser.serve_page(fake_model, modules=fake_modules,
                                                                                        port=int(port)):
            pass
    with pytest.raises(OSError):
        socket.create_connection((host, int(port)), 2).close()


def test_several_are_answered_at_once_and_one_who_leaves_does_no_harm(address, fake_model, capfd):
    (fake_model / "model.onnx.data").write_bytes(bytes(20_000_000))
    url = f"{address}model/model.onnx.data"
    with urllib.request.urlopen(url, timeout=30) as slow:
        assert slow.read(10) == bytes(10)
        assert len(ask(address, "/model/model.onnx.data")[2]) == 20_000_000
    assert ask(address, "/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_what_is_missing_is_named(fake_model, fake_modules, tmp_path, monkeypatch):
    def serve(*arguments, **options):
        with browser.serve_page(*arguments, **options):
            raise AssertionError("it serves")

    with pytest.raises(ValueError, match="port is 70000"):
        serve(fake_model, modules=fake_modules, port=70000)
    (fake_modules / "@huggingface/jinja/dist/index.js").unlink()
    with pytest.raises(FileNotFoundError, match="lack @huggingface/jinja/dist/index.js"):
        serve(fake_model, modules=fake_modules)
    (fake_model / "model.onnx.data").unlink()
    with pytest.raises(FileNotFoundError, match="no ONNX model of to_onnx: model.onnx.data is missing"):
        serve(fake_model, modules=fake_modules)


def test_without_the_repository_the_page_is_missing(fake_model, fake_modules, tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "PAGE", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="the page is not in"), browser.serve_page(fake_model, modules=fake_modules):
        pass


# ---- the packages ----------------------------------------------------------------------------------------------------

def archive(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def integrity(content):
    return "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that gives archives out of a dictionary, and the packages pinned to those; `npm.calls` lists its calls."""
    class Npm:
        calls, error = [], None
        archives = {name: archive({f"package/{file}": f"{name}/{file}" for file in (*package.files, "../../../evil.js")})
                    for name, package in browser_modules.PACKAGES.items()}

        def run(self, command, cwd, **_):
            self.calls.append(command)
            if self.error:
                return subprocess.CompletedProcess(command, 1, "", self.error)
            name, _, version = command[-1].rpartition("@")
            (Path(cwd) / f"{name.strip('@').replace('/', '-')}-{version}.tgz").write_bytes(self.archives[name])
            return subprocess.CompletedProcess(command, 0, "", "")

    npm = Npm()
    pinned = {name: replace(package, integrity=integrity(npm.archives[name])) for name, package in
              browser_modules.PACKAGES.items()}
    monkeypatch.setattr(browser_modules, "PACKAGES", pinned)
    monkeypatch.setattr(browser_modules.shutil, "which", lambda name: "/somewhere/npm.cmd" if name == "npm" else None)
    monkeypatch.setattr(browser_modules.subprocess, "run", npm.run)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return npm


def left_behind(tmp_path):
    return [path for path in tmp_path.rglob("*") if path.is_file()]


def test_packages_are_fetched_once_and_only_what_the_page_needs_is_kept(npm, tmp_path):
    folder = browser_modules.fetch_modules()
    assert browser_modules.missing_files(folder) == []
    wanted = {folder / name / file for name, package in browser_modules.PACKAGES.items() for file in package.files}
    assert set(left_behind(tmp_path)) == wanted
    assert (folder / "@huggingface/jinja/dist/index.js").read_text() == "@huggingface/jinja/dist/index.js"
    assert len(npm.calls) == len(browser_modules.PACKAGES)
    assert all(call[:2] == ["/somewhere/npm.cmd", "pack"] and "--ignore-scripts" in call for call in npm.calls)
    assert browser_modules.fetch_modules() == folder and len(npm.calls) == len(browser_modules.PACKAGES)


def test_a_folder_that_lost_a_file_is_fetched_anew(npm):
    folder = browser_modules.fetch_modules()
    (folder / "@huggingface/jinja/dist/index.js").unlink()
    assert browser_modules.missing_files(browser_modules.fetch_modules()) == []


def test_an_altered_package_is_refused_and_nothing_stays(npm, tmp_path):
    npm.archives["@huggingface/jinja"] = archive({"package/dist/index.js": "steal()"})
    with pytest.raises(ValueError, match=r"@huggingface/jinja@.* is not the pinned one: its integrity is sha512-"):
        browser_modules.fetch_modules()
    assert left_behind(tmp_path) == []


def test_without_npm_the_error_says_what_to_install(npm, monkeypatch):
    monkeypatch.setattr(browser_modules.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm is not installed: install Node.js.*--modules DIR"):
        browser_modules.fetch_modules()


@pytest.mark.parametrize("error, words", [("npm error code ENOTFOUND\nnpm error more", "npm error code ENOTFOUND. Connect"),
                                          (" ", "it wrote no archive")])
def test_a_failed_download_is_reported(npm, tmp_path, error, words):
    npm.error = error
    with pytest.raises(ConnectionError, match=f"could not fetch onnxruntime-web@.*{words}"):
        browser_modules.fetch_modules()
    assert left_behind(tmp_path) == []


def test_no_answer_is_reported(npm, monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(browser_modules.subprocess, "run", run)
    with pytest.raises(ConnectionError, match="no answer within 15 minutes"):
        browser_modules.fetch_modules()


def test_the_pins_are_sha_512():
    for package in browser_modules.PACKAGES.values():
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"), validate=True)) == 64
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)


# ---- the command -----------------------------------------------------------------------------------------------------

def test_the_model_is_exported_once(tmp_path, fake_model, monkeypatch):
    calls = []

    def to_onnx(source, folder):
        calls.append((source, folder))
        return shutil.copytree(fake_model, folder)

    monkeypatch.setattr(deploy, "to_onnx", to_onnx)
    monkeypatch.setattr("course_lib.loading.resolve", lambda name: tmp_path / name)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    folder = browser.export_model()
    assert folder == browser.export_model() == tmp_path / "cache" / "browser" / "smollm2-135m-int4"
    assert calls == [(tmp_path / "smollm2-135m", folder)]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_command_serves_until_it_is_interrupted(fake_model, fake_modules, monkeypatch, capsys, lang):
    class Time:
        def sleep(self, _):
            printed = capsys.readouterr().out
            assert ask(re.search(r"http://127\.0\.0\.1:\d+/", printed).group(), "/")[0] == 200
            assert f"?lang={lang}" in printed
            raise KeyboardInterrupt

    monkeypatch.setattr(browser, "time", Time())
    assert browser.main(["--model", str(fake_model), "--modules", str(fake_modules), "--lang", lang]) == 0


def test_the_command_reports_what_is_wrong(tmp_path, capsys):
    assert browser.main(["--model", str(tmp_path)]) == 1
    assert "is no ONNX model of to_onnx" in capsys.readouterr().err


# ---- the page's texts ------------------------------------------------------------------------------------------------

def test_the_page_has_every_text_in_both_languages():
    texts = json.loads((browser.PAGE / "texts.json").read_text("utf-8"))
    assert list(texts) == sorted(texts)
    for key, pair in texts.items():
        assert set(pair) == {"en", "ko"} and all(pair.values())
        assert sorted(re.findall(r"\{\w+\}", pair["en"])) == sorted(re.findall(r"\{\w+\}", pair["ko"]))
        assert key == "example" or re.search("[가-힣]", pair["ko"])
    html, page, worker = [(browser.PAGE / name).read_text("utf-8") for name in ("index.html", "page.js", "worker.js")]
    used = set(re.findall(r'data-text="(\w+)"', html)) | set(re.findall(r'(?:words\(|state\.\w+ = \[|status: \[)"(\w+)"', page))
    kinds = {key.removeprefix("error.") for key in texts if key.startswith("error.")}
    assert used == {key for key in texts if not key.startswith("error.")}
    assert all(f'"{kind}"' in worker for kind in kinds) and set(re.findall(r'Problem\("(\w+)"', worker)) <= kinds


# ---- in a real browser -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def modules():
    if chromium.program() is None:
        pytest.skip("no Chromium, Chrome or Edge on this machine")
    try:
        return browser_modules.fetch_modules()
    except (FileNotFoundError, ConnectionError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def onnx(real_folder, modules, tmp_path_factory):
    """The real model in 4 bits."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this machine")
    return deploy.to_onnx(real_folder, tmp_path_factory.mktemp("browser") / "onnx")


@pytest.fixture(scope="module")
def page(onnx, modules):
    """The page in a browser, with the model loaded."""
    with browser.serve_page(onnx, modules=modules) as address, chromium.Chromium(PATIENCE) as tab:
        tab.open(f"{address}?lang=en")
        tab.wait("document.querySelector('#ask')?.disabled === false", PATIENCE,
                 failed="document.querySelector('#error')?.innerText")
        yield tab


def answer(page, prompt, limit=64):
    """(ids of the prompt, ids of the answer) of what a person types into the page."""
    page.value(f"document.getElementById('prompt').value = {json.dumps(prompt)}; "
               f"document.getElementById('limit').value = {limit}; document.getElementById('ask').click()")
    page.wait("document.getElementById('stop').disabled", PATIENCE)
    assert page.text("error") == ""
    return [[int(token) for token in page.value(f"document.getElementById('{name}').textContent").split()]
            for name in ("prompt-ids", "answer-ids")]


def test_a_real_answer_appears_in_the_page(page, onnx):
    prompt, tokens = answer(page, ASK)
    assert "Paris" in page.text("answer")
    assert re.fullmatch(rf"{len(tokens)} tokens · first token after [\d.]+ s · then [\d.]+ tokens/s", page.text("figures"))
    with deploy.OnnxModel(onnx) as model:
        native = model.generate(ASK)
    assert len(prompt) == native.prompt_tokens
    assert tokens[:5] == native.tokens[:5]  # "The capital of France is"; the kernels round differently, so no more is promised
    tokenizer = AutoTokenizer.from_pretrained(onnx)
    assert page.text("answer") == tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("prompt", [ASK, *PROMPTS])
def test_the_model_in_the_page_reads_what_it_reads_in_python(page, onnx, prompt):
    messages = [{"role": "user", "content": prompt}]
    expected = AutoTokenizer.from_pretrained(onnx).apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert answer(page, prompt, limit=1)[0] == expected["input_ids"]


def test_the_page_has_threads_and_reaches_no_other_server(page):
    assert page.value("crossOriginIsolated") is True
    assert page.text("status").endswith(f"Threads: {min(page.value('navigator.hardwareConcurrency'), 8)}")
    refused = page.value("""new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI), { once: true });
        fetch("http://127.0.0.1:9/elsewhere").catch(() => setTimeout(resolve, 5000, "no violation"));
    })""")
    assert refused == "http://127.0.0.1:9/elsewhere"


def test_an_answer_can_be_stopped_and_a_long_prompt_is_refused(page):
    page.value("document.getElementById('prompt').value = 'Tell me a long story about a fox.'; "
               "document.getElementById('limit').value = 512; document.getElementById('ask').click()")
    page.wait("document.getElementById('answer').innerText.length > 10", PATIENCE)
    page.value("document.getElementById('stop').click()")
    page.wait("document.getElementById('stop').disabled", PATIENCE)
    assert 0 < len(page.value("document.getElementById('answer-ids').textContent").split()) < 512
    page.value("document.getElementById('prompt').value = 'word '.repeat(1100); document.getElementById('ask').click()")
    page.wait("document.getElementById('error').innerText", PATIENCE)
    assert "do not fit" in page.text("error") and not page.value("document.getElementById('ask').disabled")


def test_the_language_changes_without_loading_again(page):
    page.value("document.querySelector('[data-lang=ko]').click()")
    assert page.value("document.documentElement.lang") == "ko" and "lang=ko" in page.value("location.search")
    assert page.text("ask") == "질문하기" and "준비되었습니다" in page.text("status")
    page.value("document.querySelector('[data-lang=en]').click()")
    assert page.text("ask") == "Ask"


def shown_error(model, modules, break_it, *options):
    """What the page says when something is wrong from the start."""
    with browser.serve_page(model, modules=modules) as address, chromium.Chromium(PATIENCE, *options) as tab:
        break_it()
        tab.open(f"{address}?lang=en")
        tab.wait("document.getElementById('error')?.innerText", PATIENCE)
        assert tab.value("document.getElementById('ask').disabled && document.getElementById('progress').hidden")
        return tab.text("error")


@pytest.mark.parametrize("name, words", [
    ("model/model.onnx.data", "A file of the model is missing"),
    ("modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "A file of the JavaScript packages is missing"),
    ("modules/@huggingface/jinja/dist/index.js", "A file of the JavaScript packages is missing")])
def test_the_page_says_which_file_is_missing(fake_model, modules, tmp_path, name, words):
    shutil.copytree(modules, tmp_path / "modules")
    os.rename(fake_model, tmp_path / "model")
    for json_file in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / json_file).write_text('{"model": {"decoder": {"filename": "model.onnx"}}}', encoding="utf-8")
    error = shown_error(tmp_path / "model", tmp_path / "modules", (tmp_path / name).unlink)
    assert words in error and name.rpartition("/")[2] in error


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json"])
def test_the_page_says_which_file_is_damaged(onnx, modules, tmp_path, name):
    shutil.copytree(onnx, tmp_path / "model")
    damaged = tmp_path / "model" / name
    error = shown_error(tmp_path / "model", modules, lambda: damaged.write_bytes(damaged.read_bytes()[:1000]))
    assert error.startswith("A file of the model is missing or incomplete: ")


def test_the_page_says_when_memory_is_short(onnx, modules):
    error = shown_error(onnx, modules, lambda: None, "--js-flags=--wasm-max-mem-pages=1000")  # of 64 KiB
    assert error.startswith("The browser has not enough memory for this model.")
