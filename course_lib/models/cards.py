"""Model cards: the entries of `data/catalog.json`, and current figures from the Hugging Face Hub."""
from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .. import runtime

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class ModelCard:
    """One entry of `data/catalog.json`; None means unknown or not disclosed (the notes say which)."""

    id: str  # hub id of the base model, or of the chat model where no base model was released
    instruct_id: str | None  # hub id of the chat model of the same shape
    aliases: tuple[str, ...]
    name: str
    family: str
    maker: str
    parameters: int | None  # as published, tied weights once
    model_type: str | None  # in transformers; None if it has no class for the model
    config: dict[str, object]
    context: int  # tokens; where base and chat model differ, the note says so
    license: str
    license_url: str
    commercial_use: bool  # whether the licence permits it, perhaps under conditions
    gated: bool  # whether the hub asks to accept terms and to log in
    training_tokens: int | None  # of pre-training, or after another model's if the note says so
    training_tokens_note: str | None
    released: str | None  # ISO month or day
    languages: tuple[str, ...]  # two-letter codes of the languages that the makers name
    languages_note: str | None
    tasks: tuple[str, ...]
    note: dict[str, str] | None  # {"en": …, "ko": …}
    sources: dict[str, str | None]  # field → key of the catalog's list of sources
    count_difference: int = 0  # how many more parameters transformers counts
    native_context: int | None = None  # context without YaRN, if that is less than `context`

    @property
    def load_id(self) -> str:
        """The hub id to load for a conversation: `instruct_id`, or `id` if there is none."""
        return self.instruct_id or self.id

    def source(self, field: str) -> tuple[str, str]:
        """Return title and address of the page behind a field; raises LookupError if there is none."""
        key = self.sources.get(field)
        if key is None:
            known = ", ".join(self.sources)
            raise LookupError(f"the catalog has no source for {field!r} of {self.id}; it has {known}")
        page = catalog_data()["sources"][key]
        return page["title"], page["url"]

    def speaks(self, language: str) -> bool:
        """Return whether the makers name this language (a two-letter code such as "ko")."""
        return language in self.languages


@lru_cache
def catalog_data() -> dict:
    """Return the content of `data/catalog.json`: "sources", "models" and "tasks"."""
    return json.loads((runtime.data_dir() / "catalog.json").read_text(encoding="utf-8"))


@lru_cache
def _cards() -> dict[str, ModelCard]:
    """Return the cards by base id, in the catalog's order."""
    entries = ({key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
               for entry in catalog_data()["models"])
    return {entry["id"]: ModelCard(**entry) for entry in entries}


@lru_cache
def _index() -> dict[str, tuple[str, ModelCard]]:
    """Map lower-case ids and aliases, with and without the organisation, to (name, card)."""
    index = {}
    for card in _cards().values():
        for name in filter(None, (card.id, card.instruct_id, *card.aliases)):
            index |= dict.fromkeys((name.lower(), name.lower().rpartition("/")[2]), (name, card))
    return index


def catalog_ids() -> list[str]:
    """List the base ids of all models, family by family."""
    return list(_cards())


def get_card(model_id: str) -> ModelCard:
    """Return the card of a base id, a chat model's id or an alias such as "smollm2-135m"; ignores case.

    Raises:
        LookupError: unknown id; the message names the closest ones.
    """
    key = str(model_id).lower()
    if key not in _index():
        close = dict.fromkeys(_index()[name][0] for name in difflib.get_close_matches(key, _index(), n=4))
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise LookupError(f"no model {model_id!r} in the catalog.{hint} cl.models.catalog_ids() lists all.")
    return _index()[key][1]


def hub_facts(model_ids: list[str], timeout: float = 5.0) -> pandas.DataFrame:
    """Return the Hub's current downloads (last 30 days), likes and licence tag, one model per row.

    Raises:
        ConnectionError: the Hub cannot be reached within `timeout` seconds.
    """
    import pandas
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of whichever HTTP library the Hub's client uses

    rows = {}
    for model_id in model_ids:
        try:
            info = HfApi().model_info(model_id, timeout=timeout)
        except (HTTPError, OSError) as error:
            message = runtime.text("catalog.hub_unreachable", id=model_id, reason=type(error).__name__)
            raise ConnectionError(message) from error
        license = (info.card_data or {}).get("license", "")
        facts = {"downloads": info.downloads, "likes": info.likes, "license": license}
        rows[model_id] = {runtime.text(f"catalog.head.{key}"): value for key, value in facts.items()}
    return pandas.DataFrame.from_dict(rows, orient="index")
