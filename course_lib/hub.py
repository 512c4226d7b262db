"""Publish a fine-tuned adapter on the Hugging Face Hub: with a model card, and only when its owner says so.

What is uploaded is public, or can become so, for good: `push` contacts nobody without `consent=True`, makes the repository
private unless told otherwise, and sends named files only. Checkpoints stay at home, their optimizer states are pickles.

Source: https://huggingface.co/docs/huggingface_hub/guides/upload, https://huggingface.co/docs/hub/model-cards.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import catalog
from .runtime import silenced

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# beside the adapter, where they are there: which base it belongs to, the card, and the tokenizer with its chat template
OTHERS = ("README.md", "base_model.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "chat_template.jinja")
LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit"}  # as the Hub spells those that need no further word
CARD = """# {title}

A LoRA adapter for [{base}](https://huggingface.co/{base}), fine-tuned on {data}. Rank {rank}, α {alpha}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16"), "OWNER/NAME")
```

## Measured

| | before | after |
|---|---|---|
{rows}

## Limits

{limits}

## Licence

The base model: {base_licence}. The data: {data_licence}.
"""


def write_card(
    folder: str | Path, base: str, *, data: str, data_licence: str, measured: Mapping[str, tuple[float, float]],
    limits: Sequence[str], languages: Sequence[str] = ("ko",),
) -> Path:
    """Write the model card of an adapter, README.md in its folder; returns its path. Shown in lesson 11.

    Args:
        folder: where `finetune` saved the adapter.
        base: of the catalog, such as a profile's model; the card links to its chat model and names its licence.
        data, data_licence: what it was trained on, in words.
        measured: what → (before, after); a card without figures, or without limits, says nothing.

    Raises:
        FileNotFoundError: no adapter in that folder. LookupError: the catalog has no such model.
        ValueError: no figures or no limits.
    """
    folder = _checked(folder)
    if not measured or not limits:
        raise ValueError("measured and limits must not be empty: say what improved, and what the model cannot do")
    model = catalog.get(base)
    base_id = model.instruct_id or model.id
    settings = json.loads((folder / ADAPTER[0]).read_text(encoding="utf-8"))
    licence = LICENCES.get(model.licence, "other")
    head = [f"base_model: {base_id}", "library_name: peft", "pipeline_tag: text-generation", f"license: {licence}"]
    if licence == "other":
        head += [f"license_name: {json.dumps(model.licence)}", f"license_link: {model.licence_url}"]
    head += ["language:", *(f"- {language}" for language in languages), "tags:", "- lora", "- qlora"]
    words = CARD.format(
        title=folder.name, base=base_id, data=data, rank=settings["r"], alpha=settings["lora_alpha"], data_licence=data_licence,
        rows="\n".join(f"| {name} | {before:.3f} | {after:.3f} |" for name, (before, after) in measured.items()),
        limits="\n".join(f"- {limit}" for limit in limits), base_licence=model.licence)
    path = folder / "README.md"
    path.write_text("---\n" + "\n".join(head) + "\n---\n" + words, encoding="utf-8")
    return path


def push(
    folder: str | Path, repo_id: str, *, consent: bool = False, token: str | None = None, endpoint: str | None = None,
    private: bool = True,
) -> str | None:
    """Upload an adapter and its card to the Hub; returns the address, or None where nothing was done. Shown in lesson 11.

    Args:
        folder: holds an adapter and a card (`write_card`).
        repo_id: "owner/name"; the card that is sent says so where `write_card` could only write OWNER/NAME.
        consent: only True uploads; without it no token is looked for and nobody is contacted.
        token: with the right to write; by default the one of `hf auth login` or HF_TOKEN. It is never printed or stored.
        endpoint: of another Hub than huggingface.co.
        private: nobody else sees the repository. One that exists keeps its visibility: if that is public, it is refused.

    Raises:
        ValueError: a wrong repo_id, a card that is missing, a public repository where private was asked for, or a token
            inside a file. FileNotFoundError: no adapter in that folder.
        PermissionError: no token, or one that the Hub refuses. ConnectionError: the Hub cannot be reached.
        OSError: the Hub fails otherwise.
    """
    if consent is not True:
        return None
    folder = _checked(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise ValueError(f"repo_id is {repo_id!r}; it must be 'owner/name', such as 'your-name/korean-qa'")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = token or get_token()
    if not token:
        raise PermissionError("there is no token: make one with the right to write on huggingface.co/settings/tokens, then "
                              "hf auth login (or the environment variable HF_TOKEN); never write it into a notebook")
    files = _files(folder, token)
    api = HfApi(endpoint=endpoint, token=token)
    with _speaking(repo_id, token), silenced():  # its bars
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public; choose another name, or say private=False")
        card = (folder / "README.md").read_text(encoding="utf-8").replace("OWNER/NAME", repo_id)  # known only now
        content = {path.name: path for path in files} | {"README.md": card.encode()}
        api.create_commit(repo_id, [CommitOperationAdd(name, what) for name, what in content.items()],
                          commit_message="Adapter and model card")
    return f"{api.endpoint}/{repo_id}"


def _checked(folder: str | Path) -> Path:
    folder = Path(folder)
    missing = [name for name in ADAPTER if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"folder {str(folder)!r} holds no {' and no '.join(missing)}; give the one in which finetune "
                                "saved an adapter")
    return folder


def _files(folder: Path, token: str) -> list[Path]:
    """What is sent; a token inside a file stops it."""
    if not (folder / "README.md").is_file():
        raise ValueError(f"folder {str(folder)!r} holds no README.md: write_card tells others what the adapter is")
    files = [folder / name for name in (*ADAPTER, *OTHERS) if (folder / name).is_file()]
    leaking = [path.name for path in files if token.encode() in path.read_bytes()]
    if leaking:
        raise ValueError(f"{', '.join(leaking)} holds your token; take it out, and revoke it if others have seen it")
    return files


@contextmanager
def _speaking(repo_id: str, token: str) -> Iterator[None]:
    """The Hub's errors, each as one sentence to act on, without the token and without the chain behind them."""
    from huggingface_hub import errors

    http_error = errors.HfHubHTTPError.__mro__[1]  # of the HTTP library that this version uses
    try:
        yield
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise PermissionError(f"the Hub refuses to write {repo_id} ({code}): the token must be valid, have the right to "
                                  "write, and belong to that owner") from None
        reason = str(error).replace(token, "…").splitlines()[0]
        raise OSError(f"the Hub did not take {repo_id} ({code}): {reason}") from None
    except (http_error, ConnectionError):  # no answer at all, or HF_HUB_OFFLINE
        raise ConnectionError("the Hub cannot be reached: check the network; the adapter and its card are in the folder, "
                              "so you can push them later") from None
