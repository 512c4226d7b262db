"""Stand-ins for the model and the packages of the page: files with the right names."""
import pytest

from demos.browser import modules, server


@pytest.fixture
def fake_model(tmp_path):
    """A folder with the names of an ONNX export; the server does not look inside."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    for name in (
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "private.txt",
    ):
        (folder / name).write_text(f"content of {name}", encoding="utf-8")
    return folder


@pytest.fixture
def fake_modules(tmp_path):
    folder = tmp_path / "node_modules"
    for path in modules.missing_files(folder):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"content of {path}", encoding="utf-8")
    (folder / "onnxruntime-web" / "package.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def address(fake_model, fake_modules):
    with server.serve_page(fake_model, modules=fake_modules) as address:
        yield address
