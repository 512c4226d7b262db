"""The page: its texts, and a real answer in a real browser."""
import json
import os
import re
import shutil

import pytest
from transformers import AutoTokenizer

from course_lib.export.onnx import OnnxModel, to_onnx
from demos.browser import modules, server
from tests.demos import chromium

ASK = "What is the capital of France?"
PROMPTS = [
    "프랑스의 수도는 어디입니까?",
    "def f(x):\n\treturn x**2  # twice  \n",
    "  naïve 🙂 1234567 <|im_end|> ",
]
PATIENCE = 300  # seconds; a busy machine in CI takes long to load and to answer


def test_the_page_has_every_text_in_both_languages():
    texts = json.loads((server.PAGE / "texts.json").read_text("utf-8"))
    assert list(texts) == sorted(texts)
    for key, pair in texts.items():
        assert set(pair) == {"en", "ko"} and all(pair.values())
        assert sorted(re.findall(r"\{\w+\}", pair["en"])) == sorted(re.findall(r"\{\w+\}", pair["ko"]))
        assert key == "example" or re.search("[가-힣]", pair["ko"])
    html, page, worker = [
        (server.PAGE / name).read_text("utf-8") for name in ("index.html", "page.js", "worker.js")
    ]
    used = set(re.findall(r'data-text="(\w+)"', html)) | set(
        re.findall(r'(?:words\(|state\.\w+ = \[|status: \[)"(\w+)"', page)
    )
    kinds = {key.removeprefix("error.") for key in texts if key.startswith("error.")}
    assert used == {key for key in texts if not key.startswith("error.")}
    assert (
        all(f'"{kind}"' in worker for kind in kinds) and set(re.findall(r'Problem\("(\w+)"', worker)) <= kinds
    )


# ---- in a real browser --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def packages():
    """The npm packages of the page."""
    if chromium.program() is None:
        pytest.skip("no Chromium, Chrome or Edge on this machine")
    try:
        return modules.fetch_modules()
    except (FileNotFoundError, ConnectionError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def onnx(real_folder, packages, tmp_path_factory):
    """The real model in 4 bits."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai has no wheel for this machine")
    return to_onnx(real_folder, tmp_path_factory.mktemp("browser") / "onnx")


@pytest.fixture(scope="module")
def page(onnx, packages):
    """The page in a browser, with the model loaded."""
    with server.serve_page(onnx, modules=packages) as address, chromium.Chromium(PATIENCE) as tab:
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
    assert re.fullmatch(
        rf"{len(tokens)} tokens · first token after [\d.]+ s · then [\d.]+ tokens/s", page.text("figures")
    )
    with OnnxModel(onnx) as model:
        native = model.generate(ASK)
    assert len(prompt) == native.prompt_tokens
    assert (
        tokens[:5] == native.tokens[:5]
    )  # "The capital of France is"; the kernels round differently, so no more is promised
    tokenizer = AutoTokenizer.from_pretrained(onnx)
    assert page.text("answer") == tokenizer.decode(tokens, skip_special_tokens=True).strip()


@pytest.mark.parametrize("prompt", [ASK, *PROMPTS])
def test_the_model_in_the_page_reads_what_it_reads_in_python(page, onnx, prompt):
    messages = [{"role": "user", "content": prompt}]
    expected = AutoTokenizer.from_pretrained(onnx).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    assert answer(page, prompt, limit=1)[0] == expected["input_ids"]


def test_the_page_has_threads_and_reaches_no_other_server(page):
    assert page.value("crossOriginIsolated") is True
    assert page.text("status").endswith(f"Threads: {min(page.value('navigator.hardwareConcurrency'), 8)}")
    refused = page.value("""new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.blockedURI),
                                  { once: true });
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
    page.value(
        "document.getElementById('prompt').value = 'word '.repeat(1100);"
        "document.getElementById('ask').click()"
    )
    page.wait("document.getElementById('error').innerText", PATIENCE)
    assert "do not fit" in page.text("error") and not page.value("document.getElementById('ask').disabled")


def test_the_language_changes_without_loading_again(page):
    page.value("document.querySelector('[data-lang=ko]').click()")
    assert page.value("document.documentElement.lang") == "ko" and "lang=ko" in page.value("location.search")
    assert page.text("ask") == "질문하기" and "준비되었습니다" in page.text("status")
    page.value("document.querySelector('[data-lang=en]').click()")
    assert page.text("ask") == "Ask"


def shown_error(model, packages, break_it, *options):
    """What the page says when something is wrong from the start."""
    with server.serve_page(model, modules=packages) as address, chromium.Chromium(PATIENCE, *options) as tab:
        break_it()
        tab.open(f"{address}?lang=en")
        tab.wait("document.getElementById('error')?.innerText", PATIENCE)
        assert tab.value(
            "document.getElementById('ask').disabled && document.getElementById('progress').hidden"
        )
        return tab.text("error")


@pytest.mark.parametrize(
    "name, words",
    [
        ("model/model.onnx.data", "A file of the model is missing"),
        (
            "modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
            "A file of the JavaScript packages is missing",
        ),
        ("modules/@huggingface/jinja/dist/index.js", "A file of the JavaScript packages is missing"),
    ],
)
def test_the_page_says_which_file_is_missing(fake_model, packages, tmp_path, name, words):
    shutil.copytree(packages, tmp_path / "modules")
    os.rename(fake_model, tmp_path / "model")
    for json_file in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / json_file).write_text(
            '{"model": {"decoder": {"filename": "model.onnx"}}}', encoding="utf-8"
        )
    error = shown_error(tmp_path / "model", tmp_path / "modules", (tmp_path / name).unlink)
    assert words in error and name.rpartition("/")[2] in error


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json"])
def test_the_page_says_which_file_is_damaged(onnx, packages, tmp_path, name):
    shutil.copytree(onnx, tmp_path / "model")
    damaged = tmp_path / "model" / name
    error = shown_error(
        tmp_path / "model", packages, lambda: damaged.write_bytes(damaged.read_bytes()[:1000])
    )
    assert error.startswith("A file of the model is missing or incomplete: ")


def test_the_page_says_when_memory_is_short(onnx, packages):
    error = shown_error(onnx, packages, lambda: None, "--js-flags=--wasm-max-mem-pages=1000")  # of 64 KiB
    assert error.startswith("The browser has not enough memory for this model.")
