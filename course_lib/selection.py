"""Which model for which task: a short list of rules, applied in order to the candidates that the catalog names.

The candidates of a task stand in `data/catalog.json` in order of preference, with the evidence for each. The first one
that passes every rule is the answer. The rules are data (`RULES`): `recommend` applies them, and the flowchart of
lesson 10 (`show.selection_flowchart`) is drawn from the same list, so that picture and function can't drift apart.

Memory: the weights in the best of bf16, int8 and nf4 that fits, the KV cache of the context that is asked for
(`memory.estimate`), and room for activations: what the prefill of that context needs in one pass, at least a fifth of
the weights.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from . import catalog, memory, runtime
from .cards import ModelCard, contents, get
from .published import Figure, cited_figure

TIERS = {"best": 10e9, "budget": 4e9, "mobile": 2e9}  # at most so many parameters: a lower tier is never larger
LICENCES = (None, "commercial", "open")
OPEN_LICENCES = ("Apache-2.0", "MIT")
PRECISIONS = ("bf16", "int8", "nf4")  # the best first
MARGIN = 0.2  # of the weights' bytes, the least that is kept free for activations (and for a short cache)


@dataclass(frozen=True)
class Conditions:
    """What a model has to meet; the arguments of `recommend`.

    Raises:
        ValueError: unknown task, tier or licence, or a memory or context that is not positive.
    """

    task: str
    tier: str = "best"
    memory_gb: float | None = None
    licence: str | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("task", contents()["tasks"]), ("tier", TIERS), ("licence", LICENCES)):
            runtime.check_choice(name, getattr(self, name), tuple(allowed))
        for name in ("memory_gb", "context"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")

    @property
    def candidates(self) -> list[tuple[ModelCard, dict]]:
        """(card, the catalog's entry with the evidence) in order of preference."""
        return [(get(entry["id"]), entry) for entry in contents()["tasks"][self.task]["candidates"]]


@dataclass(frozen=True)
class Need:
    """Bytes that a model takes while it answers."""

    weights: int
    cache: int
    spare: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.spare


@dataclass(frozen=True)
class Rule:
    """One question of the guide. Its words are strings: selection.question.NAME, .yes.NAME, .no.NAME and .need.NAME.

    Attributes:
        name: in the keys of its words.
        asked: whether the conditions ask for it at all.
        passes: the test of a candidate.
        values: numbers and names for its words.
        distance: of a candidate that fails, how far; the nearest one is named when nothing fits.
    """

    name: str
    asked: Callable[[Conditions], bool]
    passes: Callable[[ModelCard, Conditions], bool]
    values: Callable[[ModelCard, Conditions], dict[str, str]]
    distance: Callable[[ModelCard, Conditions], float] = lambda card, conditions: 0

    @property
    def question(self) -> str:
        """The question, as the flowchart shows it."""
        return runtime.text(f"selection.question.{self.name}", **{tier: f"{size / 1e9:g}" for tier, size in TIERS.items()})

    def yes(self, card: ModelCard, conditions: Conditions) -> str:
        """Why a candidate passes."""
        return self._say(f"selection.yes.{self.name}", card, conditions)

    def no(self, card: ModelCard, conditions: Conditions) -> str:
        """Why it fails."""
        return self._say(f"selection.no.{self.name}", card, conditions)

    def need(self, card: ModelCard, conditions: Conditions) -> str:
        """What it would take for this candidate, the nearest, when nothing passes."""
        return self._say(f"selection.need.{self.name}", card, conditions)

    def _say(self, key: str, card: ModelCard, conditions: Conditions) -> str:
        return runtime.text(key, model=card.load_id, **self.values(card, conditions))


@dataclass(frozen=True)
class Recommendation:
    """The model to load for a task, and why.

    Attributes:
        model_id: hub id of the chat model.
        precision: of the weights, "bf16", "int8" or "nf4".
        weight_gb: the weights in that precision, in 10^9 bytes.
        reasons: sentences in the language set by `runtime.set_language`.
        rejected: (model id, reason) of the candidates that would have come first.
        need_gb: weights, KV cache of the context and room for activations, in 10^9 bytes.
        figures: benchmark → published figure that speaks for the model at this task, then "parameters" and "context".
    """

    model_id: str
    task: str
    tier: str
    precision: str
    weight_gb: float
    reasons: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...] = ()
    need_gb: float = 0.0
    figures: dict[str, Figure] = field(default_factory=dict, hash=False)


def memory_need(card: ModelCard, precision: str, context: int | None = None) -> Need:
    """Bytes of a model in a precision that answers within `context` tokens (None: a short one, inside the margin)."""
    if context is None:
        weights = catalog.weight_bytes(card.id, precision)
        return Need(weights, 0, MARGIN * weights)
    estimate = memory.estimate(card.id, precision, context=context)
    return Need(estimate.weights, estimate.kv_cache, max(MARGIN * estimate.weights, estimate.activations))


def fitting_precision(card: ModelCard, conditions: Conditions) -> str | None:
    """The first of bf16, int8 and nf4 that fits in the memory, or None; bf16 without a limit."""
    limit = conditions.memory_gb
    return next((precision for precision in PRECISIONS
                 if limit is None or memory_need(card, precision, conditions.context).total <= limit * 1e9), None)


def _size(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    return {"billions": f"{card.parameters / 1e9:.2f}", "limit": f"{TIERS[conditions.tier] / 1e9:g}"}


def _licence(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    return {"licence": card.licence}


def _reach(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    return {"reach": f"{card.context:,}", "context": f"{conditions.context:,}"}


def _room(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    precision = fitting_precision(card, conditions) or PRECISIONS[-1]
    parts = memory_need(card, precision, conditions.context)
    sizes = {name: f"{getattr(parts, name) / 1e9:.2f}" for name in ("weights", "cache", "spare", "total")}
    words = runtime.text("selection.parts.short" if conditions.context is None else "selection.parts.context", **sizes)
    limit = "" if conditions.memory_gb is None else f"{conditions.memory_gb:g}"
    return {"precision": precision, "memory": limit, "parts": words} | sizes


RULES = (
    Rule("tier", lambda conditions: True,
         lambda card, conditions: card.parameters <= TIERS[conditions.tier], _size,
         lambda card, conditions: card.parameters),
    Rule("commercial", lambda conditions: conditions.licence == "commercial",
         lambda card, conditions: card.commercial_use, _licence),
    Rule("open", lambda conditions: conditions.licence == "open",
         lambda card, conditions: card.licence in OPEN_LICENCES, _licence),
    Rule("context", lambda conditions: conditions.context is not None,
         lambda card, conditions: card.context >= conditions.context, _reach,
         lambda card, conditions: -card.context),
    Rule("memory", lambda conditions: conditions.memory_gb is not None,
         lambda card, conditions: fitting_precision(card, conditions) is not None, _room,
         lambda card, conditions: memory_need(card, PRECISIONS[-1], conditions.context).total),
)


def judge_candidates(conditions: Conditions) -> dict[str, dict[str, bool]]:
    """Base id of each candidate → rule → whether it passes, for the rules that the conditions ask for."""
    asked = [rule for rule in RULES if rule.asked(conditions)]
    return {card.id: {rule.name: rule.passes(card, conditions) for rule in asked} for card, _ in conditions.candidates}


def recommend(
    task: str, tier: str = "best", memory_gb: float | None = None, licence: str | None = None, context: int | None = None,
) -> Recommendation:
    """The first of a task's candidates, in the catalog's order of preference, that passes every rule.

    Args:
        task: "general_chat", "code", "reasoning", "korean", "multilingual", "rag", "summarization",
            "function_calling" or "edge".
        tier: an upper bound on parameters: "best" 10B, "budget" 4B, "mobile" 2B.
        memory_gb: GB (10^9 bytes) for weights, cache and activations (see `memory_need`); the precision is then the best of
            bf16, int8 and nf4 that fits. Without it the precision is bf16.
        licence: None, "commercial" (the licence permits commercial use) or "open" (Apache-2.0 or MIT).
        context: tokens of prompt and answer together that the model has to hold; None asks for no particular length.

    Raises:
        ValueError: unknown task, tier or licence, or a memory or context that is not positive.
        LookupError: no candidate meets the conditions; says what would be needed, in the language that is set.
    """
    conditions = Conditions(task, tier, memory_gb, licence, context)
    rejected = []
    for card, entry in conditions.candidates:
        asked = [rule for rule in RULES if rule.asked(conditions)]
        stopped_by = next((rule for rule in asked if not rule.passes(card, conditions)), None)
        if stopped_by is None:
            precision = fitting_precision(card, conditions)
            parts = memory_need(card, precision, context)
            return Recommendation(card.load_id, task, tier, precision, parts.weights / 1e9,
                                  _reasons(card, entry, conditions), tuple(rejected), parts.total / 1e9,
                                  _figures(card, entry))
        rejected.append((card.load_id, stopped_by.no(card, conditions)))
    raise LookupError(_what_would_do(conditions))


def _reasons(card: ModelCard, entry: dict, conditions: Conditions) -> tuple[str, ...]:
    """The evidence for the task, each rule that was asked, and what else to know before loading the model."""
    lang = runtime.language()
    reasons = [f"{contents()['tasks'][conditions.task]['name'][lang]}: {entry['why'][lang]}"]
    reasons += [rule.yes(card, conditions) for rule in RULES if rule.asked(conditions)]
    if conditions.memory_gb is None:
        reasons.append(runtime.text("selection.weights", **_room(card, conditions)))
    if conditions.licence is None:
        use = "commercial" if card.commercial_use else "noncommercial"
        reasons.append(runtime.text(f"selection.licence.{use}", licence=card.licence))
    if card.native_context and (conditions.context or 0) > card.native_context:
        reasons.append(runtime.text("selection.extended", native=f"{card.native_context:,}"))
    return tuple(reasons + [runtime.text("selection.gated")] * card.gated)


def _figures(card: ModelCard, entry: dict) -> dict[str, Figure]:
    """What the catalog's evidence names, then the two facts of the card that rules test."""
    found = {benchmark: cited_figure(card.id, benchmark, entry["source"]) for benchmark in entry["figures"]}
    return found | {fact: Figure(card.id, None, fact, getattr(card, fact), None, None, card.sources[fact])
                    for fact in ("parameters", "context")}


def _what_would_do(conditions: Conditions) -> str:
    """For each rule that alone stops a candidate, what it would take; or the candidate that fails the fewest."""
    cards = {card.id: card for card, _ in conditions.candidates}
    failed = {key: [rule for rule in RULES if not passed.get(rule.name, True)]
              for key, passed in judge_candidates(conditions).items()}
    lines = [runtime.text("selection.none", task=contents()["tasks"][conditions.task]["name"][runtime.language()])]
    for rule in RULES:
        alone = [cards[key] for key, rules in failed.items() if rules == [rule]]
        if alone:
            nearest = min(alone, key=lambda card: rule.distance(card, conditions))
            lines.append(rule.need(nearest, conditions))
    if len(lines) == 1:
        key = min(failed, key=lambda key: len(failed[key]))
        problems = " ".join(rule.no(cards[key], conditions) for rule in failed[key])
        lines.append(runtime.text("selection.nearest", model=cards[key].load_id, problems=problems))
    return " ".join(lines)
