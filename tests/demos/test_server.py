"""The page's server: what it gives, what it refuses, and the command that starts it."""
import http.client
import re
import shutil
import socket
import urllib.request

import pytest

from course_lib.export import onnx
from demos.browser import server


def ask(address, path, method="GET", **headers):
    """Send exactly this path: urllib would tidy it up."""
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=30)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "path, kind",
    [
        ("/", "text/html"),
        ("/index.html?lang=ko", "text/html"),
        ("/style.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/texts.json", "application/json"),
        ("/model/tokenizer.json", "application/json"),
        ("/model/model.onnx.data", "application/octet-stream"),
        ("/%6dodel/model.onnx", "application/octet-stream"),
        ("/modules/@huggingface/jinja/dist/index.js", "text/javascript"),
        ("/modules/onnxruntime-web/dist/ort.wasm.min.mjs", "text/javascript"),
        ("/modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "application/wasm"),
    ],
)
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


@pytest.mark.parametrize(
    "path",
    [
        "/nothing.html",
        "/model",
        "/model/",
        "/modules/",
        "/modules/onnxruntime-web/",
        "/model/private.txt",
        "/modules/onnxruntime-web/package.json",
        "/../browser/page.js",
        "/model/../model/model.onnx",
        "/model/..%2f..%2fREADME.md",
        "/..%2f..%2f..%2fREADME.md",
        "/%2e%2e/%2e%2e/%2e%2e/README.md",
        "//etc/passwd",
        "/etc/passwd",
        "/\\..\\..\\README.md",
        "/model/model.onnx%00.json",
    ],
)
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
    with server.serve_page(fake_model, modules=fake_modules) as address:
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        assert host == "127.0.0.1"
        with pytest.raises(OSError):  # on all interfaces it would answer here too
            socket.create_connection(("127.0.0.2", int(port)), 2).close()
        with (
            pytest.raises(OSError, match=f"port {port} .* in use"),
            server.serve_page(fake_model, modules=fake_modules, port=int(port)),
        ):
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
        with server.serve_page(*arguments, **options):
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
    monkeypatch.setattr(server, "PAGE", tmp_path / "none")
    with (
        pytest.raises(FileNotFoundError, match="the page is not in"),
        server.serve_page(fake_model, modules=fake_modules),
    ):
        pass


# ---- the command --------------------------------------------------------------------------------

def test_the_model_is_exported_once(tmp_path, fake_model, monkeypatch):
    calls = []

    def to_onnx(source, folder):
        calls.append((source, folder))
        return shutil.copytree(fake_model, folder)

    monkeypatch.setattr(onnx, "to_onnx", to_onnx)
    monkeypatch.setattr("course_lib.loading.resolve", lambda name: tmp_path / name)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    folder = server.export_model()
    assert folder == server.export_model() == tmp_path / "cache" / "browser" / "smollm2-135m-int4"
    assert calls == [(tmp_path / "smollm2-135m", folder)]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_command_serves_until_it_is_interrupted(fake_model, fake_modules, monkeypatch, capsys, lang):
    class Time:
        def sleep(self, _):
            printed = capsys.readouterr().out
            assert ask(re.search(r"http://127\.0\.0\.1:\d+/", printed).group(), "/")[0] == 200
            assert f"?lang={lang}" in printed
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "time", Time())
    assert server.main(["--model", str(fake_model), "--modules", str(fake_modules), "--lang", lang]) == 0


def test_the_command_reports_what_is_wrong(tmp_path, capsys):
    assert server.main(["--model", str(tmp_path)]) == 1
    assert "is no ONNX model of to_onnx" in capsys.readouterr().err
