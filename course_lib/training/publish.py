"""Publish a fine-tuned adapter with a model card on the Hugging Face Hub, only with consent.

An upload can stay public for good. So `push_adapter` contacts nobody without `consent=True`, creates a
private repository by default, and sends named files only. Checkpoints are not sent: their optimizer states
are pickles. Sources: https://huggingface.co/docs/huggingface_hub/guides/upload,
https://huggingface.co/docs/hub/model-cards.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..models import cards
from ..runtime import replacing, silenced

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# sent with the adapter if present: the card, the identity of the base, and the tokenizer
OTHERS = ("README.md", "base_model.json", "tokenizer.json", "tokenizer_config.json",
          "special_tokens_map.json", "chat_template.jinja")
CARD = """---
{{ card_data }}
---
# {{ title }}

A LoRA adapter for [{{ base_model }}](https://huggingface.co/{{ base_model }}), fine-tuned on {{ data }}. \
Rank {{ settings.r }}, α {{ settings.lora_alpha }}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{{ base_model }}", dtype="bfloat16")
model = PeftModel.from_pretrained(base, "OWNER/NAME")
```

## Measured

| | before | after |
|---|---|---|
{% for name, pair in measured.items() -%}
| {{ name }} | {{ "%.3f"|format(pair[0]) }} | {{ "%.3f"|format(pair[1]) }} |
{% endfor %}
## Limits

{% for limit in limits -%}
- {{ limit }}
{% endfor %}
## Licence

The base model: {{ base_license }}. The data: {{ data_license }}.

"""


def write_card(
    folder: str | Path, base: str, *, data: str, data_license: str,
    measured: Mapping[str, tuple[float, float]], limits: Sequence[str], languages: Sequence[str] = ("ko",),
) -> Path:
    """Write the model card README.md of an adapter that `finetune` saved; returns its path (lesson 11).

    Args:
        base: a model id of the catalog; the card links to its chat model and names its licence.
        data, data_license: in words, what the adapter was trained on, and its licence.
        measured, limits: name → (before, after), and sentences on what the model cannot do.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        LookupError: the catalog has no such model.
        ValueError: measured or limits is empty.
    """
    from huggingface_hub import ModelCard, ModelCardData

    folder = _checked(folder)
    if not measured or not limits:
        raise ValueError("measured and limits must not be empty: say what improved, and what the model "
                         "cannot do")
    model = cards.get_card(base)
    terms = {"license": model.license.lower()}
    if model.license not in ("Apache-2.0", "MIT"):  # the Hub wants to know the name and the text of any other
        terms = {"license": "other", "license_name": model.license, "license_link": model.license_url}
    head = ModelCardData(
        base_model=model.instruct_id or model.id, library_name="peft", pipeline_tag="text-generation",
        language=list(languages), tags=["lora", "qlora"], **terms)
    card = ModelCard.from_template(
        head, template_str=CARD, title=folder.name, data=data, measured=measured, limits=limits,
        settings=json.loads((folder / ADAPTER[0]).read_text(encoding="utf-8")), base_license=model.license,
        data_license=data_license)
    path = folder / "README.md"
    with replacing(path) as temporary:
        card.save(temporary)
    return path


def push_adapter(
    folder: str | Path, repo_id: str, *, consent: bool = False, token: str | None = None,
    endpoint: str | None = None, private: bool = True,
) -> str | None:
    """Upload an adapter and its card (`write_card`) to the Hub; returns the address (lesson 11).

    Args:
        repo_id: "owner/name"; the uploaded card says so where `write_card` wrote OWNER/NAME.
        consent: anything but True returns None; no token is read and nobody is contacted.
        token: with write access; by default from `hf auth login` or HF_TOKEN. It is never printed or stored.
        endpoint: address of another Hub than huggingface.co.
        private: visibility of a new repository; an existing one keeps its own, and True refuses a public one.

    Raises:
        ValueError: malformed repo_id, no card, the token in a file, or a public repository if private=True.
        FileNotFoundError: the folder holds no adapter.
        PermissionError: there is no token, or the Hub refuses it.
        ConnectionError, OSError: the Hub cannot be reached, or fails otherwise.
    """
    if consent is not True:
        return None
    folder = _checked(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise ValueError(f"repo_id is {repo_id!r}; it must be 'owner/name', such as 'your-name/korean-qa'")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token() if token is None else token
    if not token:
        raise PermissionError("there is no token: make one with the right to write on "
                              "huggingface.co/settings/tokens, then hf auth login (or the environment "
                              "variable HF_TOKEN); never write it into a notebook")
    files = _files(folder, token)
    api = HfApi(endpoint=endpoint, token=token)
    with _speaking(repo_id, token), silenced():  # no progress bars
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public; choose another name, or say private=False")
        card = (folder / "README.md").read_text(encoding="utf-8").replace("OWNER/NAME", repo_id)
        sent = {path.name: path for path in files} | {"README.md": card.encode()}
        operations = [CommitOperationAdd(name, content) for name, content in sent.items()]
        api.create_commit(repo_id, operations, commit_message="Adapter and model card")
    return f"{api.endpoint}/{repo_id}"


def _checked(folder: str | Path) -> Path:
    folder = Path(folder)
    missing = [name for name in ADAPTER if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"folder {str(folder)!r} holds no {' and no '.join(missing)}; give the one "
                                "in which finetune saved an adapter")
    return folder


def _files(folder: Path, token: str) -> list[Path]:
    """The files to send; raises a ValueError if one of them contains the token."""
    if not (folder / "README.md").is_file():
        raise ValueError(f"folder {str(folder)!r} holds no README.md: write_card tells others what the "
                         "adapter is")
    files = [folder / name for name in (*ADAPTER, *OTHERS) if (folder / name).is_file()]
    leaking = [path.name for path in files if token.encode() in path.read_bytes()]
    if leaking:
        raise ValueError(f"{', '.join(leaking)} holds your token; take it out, and revoke it if others have "
                         "seen it")
    return files


@contextmanager
def _speaking(repo_id: str, token: str) -> Iterator[None]:
    """Turn the Hub's errors into one sentence on what to do, without the token and the traceback."""
    from huggingface_hub import errors

    http_error = errors.HfHubHTTPError.__mro__[1]  # of the HTTP library that this version uses
    try:
        yield
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise PermissionError(f"the Hub refuses to write {repo_id} ({code}): the token must be valid, "
                                  "have the right to write, and belong to that owner") from None
        reason = str(error).replace(token, "…").splitlines()[0]
        raise OSError(f"the Hub did not take {repo_id} ({code}): {reason}") from None
    except (http_error, ConnectionError):  # no answer at all, or HF_HUB_OFFLINE
        raise ConnectionError("the Hub cannot be reached: check the network; the adapter and its card are in "
                              "the folder, so you can push them later") from None
