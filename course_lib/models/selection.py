"""Choose a model for a task with a short list of rules.

`data/catalog.json` lists the candidates of each task in order of preference, with evidence. `recommend` takes
the first one that passes every rule in `RULES`; lesson 10 draws its flowchart
(`cl.pictures.selection_flowchart`) from the same list. The memory rule adds up the weights in the best of
bf16, int8 and nf4 that fits, the KV cache of the requested context (`cl.estimate_memory`), and the
activations of a prefill of that context in one pass, which count as at least a fifth of the weights.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil

from .. import runtime
from . import catalog, memory
from .cards import ModelCard, catalog_data, get_card
from .published import Figure, cited_figure

TIERS = {"best": 10e9, "budget": 4e9, "mobile": 2e9}  # upper limits of parameters
LICENSES = (None, "commercial", "open")
OPEN_LICENSES = ("Apache-2.0", "MIT")
PRECISIONS = ("bf16", "int8", "nf4")  # the best first
MARGIN = 0.2  # share of the weights' bytes that is kept free for activations (and a short cache)


@dataclass(frozen=True)
class Conditions:
    """What a model has to meet: the arguments of `recommend`, which raise ValueError if they are invalid."""

    task: str
    tier: str = "best"
    memory_gb: float | None = None
    license: str | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("task", catalog_data()["tasks"]), ("tier", TIERS), ("license", LICENSES)):
            runtime.check_choice(name, getattr(self, name), tuple(allowed))
        for name in ("memory_gb", "context"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")

    @property
    def candidates(self) -> list[tuple[ModelCard, dict]]:
        """Pairs (card, catalog entry with the evidence), in order of preference."""
        return [(get_card(entry["id"]), entry) for entry in catalog_data()["tasks"][self.task]["candidates"]]


@dataclass(frozen=True)
class Rule:
    """One rule; its texts are the strings selection.question.NAME, .yes.NAME, .no.NAME and .need.NAME."""

    name: str
    asked: Callable[[Conditions], bool]  # whether the rule applies under these conditions
    passes: Callable[[ModelCard, Conditions], bool]  # whether a candidate passes
    values: Callable[[ModelCard, Conditions], dict[str, str]]  # numbers and names for its texts
    # how far a candidate is from passing; if none passes, the nearest one is named
    distance: Callable[[ModelCard, Conditions], float] = lambda card, conditions: 0

    @property
    def question(self) -> str:
        """The question, as the flowchart shows it."""
        sizes = {tier: f"{size / 1e9:g}" for tier, size in TIERS.items()}
        return runtime.text(f"selection.question.{self.name}", **sizes)

    def say(self, what: str, card: ModelCard, conditions: Conditions) -> str:
        """Say why a candidate passes ("yes"), why it fails ("no"), or what it would need ("need")."""
        values = self.values(card, conditions)
        return runtime.text(f"selection.{what}.{self.name}", model=card.load_id, **values)


@dataclass(frozen=True)
class Recommendation:
    """The model to load for a task, and why."""

    model_id: str  # hub id of the chat model
    task: str
    tier: str
    precision: str  # of the weights: "bf16", "int8" or "nf4"
    weight_gb: float  # the weights in this precision, in GB (10^9 bytes)
    reasons: tuple[str, ...]  # sentences in the language that is set
    rejected: tuple[tuple[str, str], ...] = ()  # (model id, reason) of the candidates before it
    need_gb: float = 0.0  # weights, KV cache and activations, in GB (10^9 bytes)
    # benchmark → published figure that supports the choice; also "parameters" and "context"
    figures: dict[str, Figure] = field(default_factory=dict, hash=False)


def memory_need(card: ModelCard, precision: str, context: int | None = None) -> memory.MemoryEstimate:
    """Return the bytes of a model that answers within `context` tokens.

    Activations count as at least `MARGIN` of the weights; without a context, that must hold the cache too.
    """
    if context is None:
        weights = catalog.weight_bytes(card.id, precision)
        return memory.MemoryEstimate(weights, activations=ceil(MARGIN * weights))
    estimate = memory.estimate_memory(card.id, precision, context=context)
    return replace(estimate, activations=max(ceil(MARGIN * estimate.weights), estimate.activations))


def fitting_precision(card: ModelCard, conditions: Conditions) -> str | None:
    """Return the first of bf16, int8 and nf4 that fits in the memory, or None; without a limit bf16."""
    limit = conditions.memory_gb
    for precision in PRECISIONS:
        if limit is None or memory_need(card, precision, conditions.context).total <= limit * 1e9:
            return precision
    return None


def _size(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    return {"billions": f"{card.parameters / 1e9:.2f}", "limit": f"{TIERS[conditions.tier] / 1e9:g}"}


def _license(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    return {"license": card.license}


def _reach(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    return {"reach": f"{card.context:,}", "context": f"{conditions.context:,}"}


def _room(card: ModelCard, conditions: Conditions) -> dict[str, str]:
    precision = fitting_precision(card, conditions) or PRECISIONS[-1]
    need = memory_need(card, precision, conditions.context)
    sizes = {"weights": need.weights, "cache": need.kv_cache, "spare": need.activations, "total": need.total}
    sizes = {name: f"{size / 1e9:.2f}" for name, size in sizes.items()}
    words = runtime.text(f"selection.parts.{'context' if conditions.context else 'short'}", **sizes)
    limit = "" if conditions.memory_gb is None else f"{conditions.memory_gb:g}"
    return {"precision": precision, "memory": limit, "parts": words, **sizes}


RULES = (
    Rule("tier", lambda conditions: True,
         lambda card, conditions: card.parameters <= TIERS[conditions.tier], _size,
         lambda card, conditions: card.parameters),
    Rule("commercial", lambda conditions: conditions.license == "commercial",
         lambda card, conditions: card.commercial_use, _license),
    Rule("open", lambda conditions: conditions.license == "open",
         lambda card, conditions: card.license in OPEN_LICENSES, _license),
    Rule("context", lambda conditions: conditions.context is not None,
         lambda card, conditions: card.context >= conditions.context, _reach,
         lambda card, conditions: -card.context),
    Rule("memory", lambda conditions: conditions.memory_gb is not None,
         lambda card, conditions: fitting_precision(card, conditions) is not None, _room,
         lambda card, conditions: memory_need(card, PRECISIONS[-1], conditions.context).total),
)


def judge_candidates(conditions: Conditions) -> dict[str, dict[str, bool]]:
    """Map the base id of each candidate to {rule name: whether it passes}, for the rules that apply."""
    asked = [rule for rule in RULES if rule.asked(conditions)]
    return {card.id: {rule.name: rule.passes(card, conditions) for rule in asked}
            for card, _ in conditions.candidates}


def recommend(
    task: str, tier: str = "best", memory_gb: float | None = None, license: str | None = None,
    context: int | None = None,
) -> Recommendation:
    """Return the first candidate for a task, in order of preference, that passes every rule.

    Args:
        task: "general_chat", "code", "reasoning", "korean", "multilingual", "rag", "summarization",
            "function_calling" or "edge".
        tier: upper limit of parameters: "best" 10B, "budget" 4B, "mobile" 2B.
        memory_gb: GB (10^9 bytes) for weights, KV cache and activations. The precision is then the best of
            bf16, int8 and nf4 that fits; without a limit it is bf16.
        license: None, "commercial" (the licence permits commercial use) or "open" (Apache-2.0 or MIT).
        context: tokens of prompt and answer together that the model must support; None for any.

    Raises:
        ValueError: unknown task, tier or license, or a memory or context that is not positive.
        LookupError: no candidate meets the conditions; the message says what would be needed.
    """
    conditions = Conditions(task, tier, memory_gb, license, context)
    asked = [rule for rule in RULES if rule.asked(conditions)]
    rejected = []
    for card, entry in conditions.candidates:
        stopped_by = next((rule for rule in asked if not rule.passes(card, conditions)), None)
        if stopped_by is None:
            precision = fitting_precision(card, conditions)
            need = memory_need(card, precision, context)
            return Recommendation(
                card.load_id, task, tier, precision, need.weights / 1e9, _reasons(card, entry, conditions),
                tuple(rejected), need.total / 1e9, _figures(card, entry))
        rejected.append((card.load_id, stopped_by.say("no", card, conditions)))
    raise LookupError(_what_would_do(conditions))


def _reasons(card: ModelCard, entry: dict, conditions: Conditions) -> tuple[str, ...]:
    """Return the evidence for the task, why each rule passes, and what to know before loading the model."""
    lang = runtime.language()
    reasons = [f"{catalog_data()['tasks'][conditions.task]['name'][lang]}: {entry['why'][lang]}"]
    reasons += [rule.say("yes", card, conditions) for rule in RULES if rule.asked(conditions)]
    if conditions.memory_gb is None:
        reasons.append(runtime.text("selection.weights", **_room(card, conditions)))
    if conditions.license is None:
        use = "commercial" if card.commercial_use else "noncommercial"
        reasons.append(runtime.text(f"selection.license.{use}", license=card.license))
    if card.native_context and (conditions.context or 0) > card.native_context:
        reasons.append(runtime.text("selection.extended", native=f"{card.native_context:,}"))
    return tuple(reasons + [runtime.text("selection.gated")] * card.gated)


def _figures(card: ModelCard, entry: dict) -> dict[str, Figure]:
    """Return the figures that the catalog names as evidence, then parameters and context from the card."""
    figures = {benchmark: cited_figure(card.id, benchmark, entry["source"]) for benchmark in entry["figures"]}
    for fact in ("parameters", "context"):
        figures[fact] = Figure(card.id, None, fact, getattr(card, fact), None, None, card.sources[fact])
    return figures


def _what_would_do(conditions: Conditions) -> str:
    """Say what candidates that fail only one rule need, or else describe the one that fails the fewest."""
    asked = [rule for rule in RULES if rule.asked(conditions)]
    failed = {card: [rule for rule in asked if not rule.passes(card, conditions)]
              for card, _ in conditions.candidates}
    task = catalog_data()["tasks"][conditions.task]["name"][runtime.language()]
    lines = [runtime.text("selection.none", task=task)]
    for rule in RULES:
        alone = [card for card, rules in failed.items() if rules == [rule]]
        if alone:
            nearest = min(alone, key=lambda card: rule.distance(card, conditions))
            lines.append(rule.say("need", nearest, conditions))
    if len(lines) == 1:
        card = min(failed, key=lambda card: len(failed[card]))
        problems = " ".join(rule.say("no", card, conditions) for rule in failed[card])
        lines.append(runtime.text("selection.nearest", model=card.load_id, problems=problems))
    return " ".join(lines)
