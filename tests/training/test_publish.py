"""Publishing an adapter, against a stand-in for the Hub on this machine. No token is printed or written."""
from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from course_lib.training import publish

TOKEN = "hf_" + "secretSECRETsecret" * 2
MEASURED = {"loss, Korean": (2.174, 1.5)}
CARD = {"data": "296 Korean pairs", "data_license": "CC BY 4.0", "measured": MEASURED,
        "limits": ["It invents facts."]}


class StandIn(ThreadingHTTPServer):
    """The five calls of an upload as the Hub answers them, and what was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls = []
        self.authorisations = set()
        self.files = {}
        self.public = False
        self.refusal = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_call(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        server.calls.append((self.command, path))
        if path.startswith("/storage/"):
            server.files[path.removeprefix("/storage/")] = body
            return self.answer({})
        server.authorisations.add(self.headers.get("Authorization"))
        if server.refusal and path != "/api/validate-yaml":
            return self.answer({"error": f"no: {self.headers.get('Authorization')}"}, server.refusal)
        if path == "/api/repos/create":
            server.created = json.loads(body)
            return self.answer({"url": f"{server.address}/owner/adapter"}, 409 if server.public else 200)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/models/owner/adapter":
            return self.answer({"id": "owner/adapter", "private": not server.public})
        if path.endswith("/preupload/main"):
            files = [{"path": file["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                     for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            return self.answer({"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{server.address}/storage/{one['oid']}"}}}
                for one in json.loads(body)["objects"]]})
        if path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    server.files[entry["value"]["path"]] = server.files.pop(entry["value"]["oid"])
            return self.answer({"commitUrl": f"{server.address}/owner/adapter/commit/0",
                                "commitOid": "0" * 40})
        return self.answer({"error": f"the stand-in knows no {path}"}, 404)

    do_GET = do_POST = do_PUT = handle_call


@pytest.fixture
def stand_in(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in takes files by LFS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = StandIn()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_token_around(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


@pytest.fixture
def adapter(tmp_path):
    """A folder as `finetune` leaves it, with things in it that must stay at home."""
    folder = tmp_path / "korean-qa"
    (folder / "checkpoint-8").mkdir(parents=True)
    (folder / "checkpoint-8" / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "notes.txt").write_text("mine")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 32}))
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "base_model.json").write_text('{"name": "SmolLM2-135M-Instruct"}')
    return folder


@pytest.fixture
def published(adapter):
    publish.write_card(adapter, "smollm2-135m", **CARD)
    return adapter


# --- the card ----------------------------------------------------------------------------------------------

def test_the_card_says_what_others_need(adapter):
    words = publish.write_card(adapter, "smollm2-135m", **CARD).read_text("utf-8")
    _, head, body = words.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0", "language": ["ko"], "tags": ["lora", "qlora"]}
    for piece in ("# korean-qa", "Rank 16, α 32", "| loss, Korean | 2.174 | 1.500 |", "- It invents facts.",
                  "CC BY 4.0"):
        assert piece in body


def test_a_license_of_its_own_is_named(adapter):
    head = yaml.safe_load(publish.write_card(adapter, "Qwen/Qwen2.5-3B",
                                             **CARD).read_text("utf-8").split("---\n")[1])
    assert head["license"] == "other" and head["license_name"] == "Qwen Research License"
    assert head["license_link"].startswith("https://") and head["base_model"] == "Qwen/Qwen2.5-3B-Instruct"


@pytest.mark.parametrize("change, words", [({"measured": {}}, "measured"), ({"limits": []}, "limits")])
def test_a_card_without_substance_is_refused(adapter, change, words):
    with pytest.raises(ValueError, match=words):
        publish.write_card(adapter, "smollm2-135m", **{**CARD, **change})
    assert not (adapter / "README.md").exists()


def test_a_card_needs_an_adapter(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter_config.json and no adapter_model.safetensors"):
        publish.write_card(tmp_path, "smollm2-135m", **CARD)


# --- the upload --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("consent", [False, None, 1, "yes"])
def test_nothing_happens_without_consent(published, stand_in, monkeypatch, consent):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: pytest.fail("looked for a token"))
    assert publish.push_adapter(published, "owner/adapter", consent=consent, token=TOKEN,
                                endpoint=stand_in.address) is None
    assert stand_in.calls == []


def test_nothing_happens_without_a_token(published, stand_in, no_token_around):
    with pytest.raises(PermissionError, match="no token.*hf auth login"):
        publish.push_adapter(published, "owner/adapter", consent=True, endpoint=stand_in.address)
    assert stand_in.calls == []


def test_an_upload(published, stand_in, capfd, caplog, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level(logging.DEBUG):
        address = publish.push_adapter(published, "owner/adapter", consent=True, token=TOKEN,
                                       endpoint=stand_in.address)
    assert address == f"{stand_in.address}/owner/adapter"
    assert stand_in.created["visibility"] == "private" and stand_in.created["organization"] == "owner"
    paths = [path for _, path in stand_in.calls]
    steps = ["/api/repos/create", "/preupload/main", "/objects/batch", "/storage/", "/commit/main"]
    assert [next(i for i, path in enumerate(paths) if step in path) for step in steps] == sorted(
        next(i for i, path in enumerate(paths) if step in path) for step in steps)
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    sent_card = stand_in.files.pop("README.md").decode()
    assert 'PeftModel.from_pretrained(base, "owner/adapter")' in sent_card and "OWNER/NAME" not in sent_card
    assert sent_card == (published / "README.md").read_text("utf-8").replace("OWNER/NAME", "owner/adapter")
    # no checkpoint, no notes
    assert stand_in.files == {name: (published / name).read_bytes() for name in names - {"README.md"}}
    assert stand_in.authorisations == {f"Bearer {TOKEN}"}
    digest = hashlib.sha256((published / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert ("PUT", f"/storage/{digest}") in stand_in.calls
    printed = capfd.readouterr()
    assert printed.out == printed.err == "" and TOKEN not in caplog.text
    # nothing written
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not any(TOKEN.encode() in content for content in before.values())


def test_the_token_of_the_login_is_used(published, stand_in, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    assert publish.push_adapter(published, "owner/adapter", consent=True, endpoint=stand_in.address)
    assert stand_in.authorisations == {f"Bearer {TOKEN}"}


def test_a_public_repository_is_refused_where_private_was_asked_for(published, stand_in):
    stand_in.public = True
    with pytest.raises(ValueError, match="exists and is public"):
        publish.push_adapter(published, "owner/adapter", consent=True, token=TOKEN, endpoint=stand_in.address)
    assert stand_in.files == {}
    assert publish.push_adapter(published, "owner/adapter", consent=True, token=TOKEN,
                                endpoint=stand_in.address, private=False)
    assert "README.md" in stand_in.files


@pytest.mark.parametrize("code, kind",
                         [(401, PermissionError), (403, PermissionError), (404, OSError), (400, OSError)])
def test_a_refusal_is_one_sentence_without_the_token(published, stand_in, code, kind):
    stand_in.refusal = code
    with pytest.raises(kind, match=f"{code}") as caught:
        publish.push_adapter(published, "owner/adapter", consent=True, token=TOKEN, endpoint=stand_in.address)
    assert "owner/adapter" in str(caught.value) and "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert stand_in.files == {}


def test_no_hub(published, stand_in):
    address = stand_in.address
    stand_in.shutdown()
    stand_in.server_close()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        publish.push_adapter(published, "owner/adapter", consent=True, token=TOKEN, endpoint=address)


@pytest.mark.parametrize("repo_id", ["adapter", "owner/", "a/b/c", "owner/ad apter", ""])
def test_a_wrong_name_is_said_before_anything_is_sent(published, stand_in, repo_id):
    with pytest.raises(ValueError, match="owner/name"):
        publish.push_adapter(published, repo_id, consent=True, token=TOKEN, endpoint=stand_in.address)
    assert stand_in.calls == []


def test_a_card_is_wanted(adapter, stand_in):
    with pytest.raises(ValueError, match="write_card"):
        publish.push_adapter(adapter, "owner/adapter", consent=True, token=TOKEN, endpoint=stand_in.address)
    assert stand_in.calls == []


def test_a_token_inside_a_file_stops_the_upload(published, stand_in):
    (published / "base_model.json").write_text(json.dumps({"name": TOKEN}))
    with pytest.raises(ValueError, match=r"base_model\.json holds your token") as caught:
        publish.push_adapter(published, "owner/adapter", consent=True, token=TOKEN, endpoint=stand_in.address)
    assert TOKEN not in str(caught.value) and stand_in.calls == []
