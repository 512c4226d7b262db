"""The cards of the catalog: looking a model up in `data/catalog.json`, and on the hub where it can be reached."""
from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from . import runtime

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class ModelCard:
    """One entry of `data/catalog.json`; None stands for "not found" or "not disclosed" (the notes say which).

    Attributes:
        id: hub id of the base model, or of the chat model where no base model was released.
        instruct_id: hub id of the chat model of the same shape.
        parameters: the published count, tied weights once; `count_difference` is what transformers counts above it.
        model_type: of transformers, which with `config` gives a model; None where transformers has no such class.
        context: tokens; where base and chat model differ, the note says so. `native_context` is what the chat model's own
            configuration allows, where that is less: the rest needs YaRN.
        commercial_use: whether the licence permits it, perhaps under conditions.
        gated: whether the hub asks to accept terms and to log in.
        training_tokens: of pre-training, or on top of another model where the note says so.
        released: ISO month or day.
        languages: two-letter codes of those that the makers name; `languages_note` says when there are more.
        note: {"en": …, "ko": …}.
        sources: field → key of the catalog's list of sources.
    """

    id: str
    instruct_id: str | None
    aliases: tuple[str, ...]
    name: str
    family: str
    maker: str
    parameters: int | None
    model_type: str | None
    config: dict[str, object]
    context: int
    licence: str
    licence_url: str
    commercial_use: bool
    gated: bool
    training_tokens: int | None
    training_tokens_note: str | None
    released: str | None
    languages: tuple[str, ...]
    languages_note: str | None
    tasks: tuple[str, ...]
    note: dict[str, str] | None
    sources: dict[str, str | None]
    count_difference: int = 0
    native_context: int | None = None

    @property
    def load_id(self) -> str:
        """The id to load for a conversation: the chat model's, or the only one there is."""
        return self.instruct_id or self.id

    def source(self, field: str) -> tuple[str, str]:
        """Title and address of the page that a field's figure comes from.

        Raises:
            LookupError: no source was found for this field.
        """
        key = self.sources.get(field)
        if key is None:
            raise LookupError(f"the catalog has no source for {field!r} of {self.id}; it has {', '.join(self.sources)}")
        page = contents()["sources"][key]
        return page["title"], page["url"]

    def speaks(self, language: str) -> bool:
        """Whether the makers name this language (a two-letter code such as "ko")."""
        return language in self.languages


@lru_cache
def contents() -> dict:
    """The whole of `data/catalog.json`: "sources", "models" and "tasks"."""
    return json.loads((runtime.data_dir() / "catalog.json").read_text(encoding="utf-8"))


@lru_cache
def _cards() -> dict[str, ModelCard]:
    """Cards by base id, in the catalog's order."""
    entries = ({key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
               for entry in contents()["models"])
    return {entry["id"]: ModelCard(**entry) for entry in entries}


@lru_cache
def _index() -> dict[str, tuple[str, ModelCard]]:
    """Lower-case name → (name, card), for ids, aliases, and ids without the organisation."""
    index = {}
    for card in _cards().values():
        for name in filter(None, (card.id, card.instruct_id, *card.aliases)):
            index[name.lower()] = index[name.lower().rpartition("/")[2]] = (name, card)
    return index


def ids() -> list[str]:
    """The base ids of all models, family by family."""
    return list(_cards())


def get(model_id: str) -> ModelCard:
    """The card of a base id, a chat model's id or an alias such as "smollm2-135m"; case does not matter.

    Raises:
        LookupError: unknown id; the message names the closest ones.
    """
    key = str(model_id).lower()
    if key not in _index():
        close = dict.fromkeys(_index()[name][0] for name in difflib.get_close_matches(key, _index(), n=4))
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise LookupError(f"no model {model_id!r} in the catalog.{hint} course_lib.catalog.ids() lists them all.")
    return _index()[key][1]


def hub_facts(model_ids: list[str], timeout: float = 5.0) -> pandas.DataFrame:
    """What only the hub knows, today: downloads of the last 30 days, likes and the licence tag, one model a row.

    Raises:
        ConnectionError: the hub cannot be reached within `timeout` seconds.
    """
    import pandas
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of whichever HTTP library the hub's client uses

    rows = {}
    for model_id in model_ids:
        try:
            info = HfApi().model_info(model_id, timeout=timeout)
        except (HTTPError, OSError) as error:
            reason = type(error).__name__
            raise ConnectionError(runtime.text("catalog.hub_unreachable", id=model_id, reason=reason)) from error
        licence = (info.card_data or {}).get("license", "")
        rows[model_id] = {runtime.text(f"catalog.head.{key}"): value for key, value in (
            ("downloads", info.downloads), ("likes", info.likes), ("licence", licence))}
    return pandas.DataFrame.from_dict(rows, orient="index")
