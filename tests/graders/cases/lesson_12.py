"""Answers to the exercises of lesson 12: classes, each with one mistake."""
import random

import numpy as np
import pandas as pd

import course_lib as cl
from course_lib.data import filters

COLUMNS = ["bits_per_character", "memory_mb", "estimated_mb", "first_token_ms", "tokens_per_second", "spread",
           "error"]


class Comparator:
    """Right: a loop over rows of a table, with the answers in one list each; subclasses break one thing."""

    def __init__(self, candidates, prompts, texts, new_tokens=16, runs=3):
        self.candidates, self.prompts, self.texts = candidates, prompts, texts
        self.new_tokens, self.runs, self.results = new_tokens, runs, {}

    def quality(self, model, tokenizer):
        return cl.perplexity(model, tokenizer, self.texts).bits_per_character

    def answers(self, model, tokenizer):
        return [cl.chat(model, tokenizer, prompt, max_new_tokens=self.new_tokens) for prompt in self.prompts]

    def memory(self, model):
        return sum(weights.nbytes for weights in model.parameters()) / 1e6

    def estimate(self, model, precision):
        return cl.estimate_memory(model.config, precision).weights / 1e6

    def speed(self, model, tokenizer):
        found = cl.benchmark(model, tokenizer, self.prompts[0], new_tokens=self.new_tokens, runs=self.runs)
        return 1000 * found.first_token, found.tokens_per_second, found.tokens_per_second_spread

    def row(self, name):
        load, precision = self.candidates[name]
        try:
            model, tokenizer = load()
        except OSError as error:
            return {"error": f"cannot be loaded: {error}"}
        values = (self.quality(model, tokenizer), self.memory(model), self.estimate(model, precision),
                  *self.speed(model, tokenizer), "")
        return {**dict(zip(COLUMNS, values, strict=True)), "answers": self.answers(model, tokenizer)}

    def run(self):
        self.results = {name: self.row(name) for name in self.candidates}
        return pd.DataFrame(self.results).T.reindex(columns=COLUMNS)

    def report(self):
        table = pd.DataFrame(self.results).T
        lines = ["| " + " | ".join(map(str, ("model", *COLUMNS))) + " |"]
        for name, row in table.iterrows():
            cells = [f"{value:,.2f}" if isinstance(value, float) else str(value)
                     for value in row.reindex(COLUMNS)]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        said = [f"- {name}: {' / '.join(row['answers'])}" for name, row in self.results.items()
                if "answers" in row]
        return "\n".join([*lines, "", *said])


def broken(method, function):
    """The right class with one method replaced; `function` gets the right method's result and the object."""
    def replacement(self, *arguments):
        return function(self, getattr(Comparator, method)(self, *arguments), *arguments)

    return type("Broken", (Comparator,), {method: replacement})


class Crashing(Comparator):
    def row(self, name):
        load, precision = self.candidates[name]
        load()
        return super().row(name)


class Together(Comparator):
    def run(self):
        rows = {}
        for name, (load, _) in self.candidates.items():
            try:
                model, tokenizer = load()
            except OSError as error:
                rows[name] = {"error": str(error)}
                continue
            rows[name] = dict.fromkeys(COLUMNS, 1.0)
        return pd.DataFrame(rows).T.reindex(columns=COLUMNS)


def per_token(self, right, model, tokenizer):
    return cl.perplexity(model, tokenizer, self.texts).per_token


def mean_of_texts(self, right, model, tokenizer):
    return sum(cl.perplexity(model, tokenizer, text).bits_per_character
               for text in self.texts) / len(self.texts)


def one_rate(self, right, model, tokenizer):
    first, rate, spread = right
    return first, self.new_tokens / (first / 1000 + self.new_tokens / rate), spread


# --- 12.2 ---------------------------------------------------------------------------------------------------

class Proof:
    """Right: a group of near-duplicates on one side, a bootstrap of our own; subclasses break one thing."""

    def __init__(self, load, train, ask, score):
        self.load, self.train, self.ask, self.score, self.results = load, train, ask, score, {}

    def groups(self, records):
        found = filters.near_duplicates([record["question"] for record in records], threshold=0.5)
        alone = set(range(len(records))) - {place for group in found for place in group}
        return [*found, *([place] for place in sorted(alone))]

    def split(self, records, share=0.25, seed=0):
        groups = self.groups(records)
        random.Random(seed).shuffle(groups)
        train, test = [], []
        for group in groups:
            part = test if len(test) + len(group) <= share * len(records) else train
            part.extend(records[place] for place in group)
        return train, test

    def evaluate(self, model, tokenizer, records):
        return [self.score(*pair) for pair in zip(self.ask(model, tokenizer, records), records, strict=True)]

    def decide(self, before, after):
        gains = np.array(after) - np.array(before)
        drawn = gains[np.random.default_rng(1).integers(0, len(gains), (4000, len(gains)))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
        return {"before": np.mean(before), "after": np.mean(after), "gain": gains.mean(), "low": low,
                "high": high, "verdict": verdict}

    def run(self, records, others):
        train, test = self.split(records)
        model, tokenizer = self.load()
        before = [self.evaluate(model, tokenizer, part) for part in (test, others)]
        model = self.train(model, tokenizer, train)
        after = [self.evaluate(model, tokenizer, part) for part in (test, others)]
        self.results = {name: self.decide(*pair)
                        for name, *pair in zip(("domain", "outside"), before, after, strict=True)}
        return self.results

    def report(self):
        return "\n".join(f"- {name}: {found['before']:.1%} → {found['after']:.1%}, gain between "
                         f"{found['low']:+.3f} and {found['high']:+.3f}: {found['verdict']}"
                         for name, found in self.results.items())


def changed(**methods):
    return type("Changed", (Proof,), methods)


def at_random(self, records, share=0.25, seed=0):
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    cut = round(share * len(records))
    return [records[place] for place in order[cut:]], [records[place] for place in order[:cut]]


def unpaired(self, before, after):
    result = Proof.decide(self, before, after)
    rng = np.random.default_rng(0)
    drawn = [np.mean(rng.choice(after, len(after))) - np.mean(rng.choice(before, len(before)))
             for _ in range(1000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {**result, "low": low, "high": high,
            "verdict": "better" if low > 0 else "worse" if high < 0 else "undecided"}


def by_the_mean(self, before, after):
    result = Proof.decide(self, before, after)
    return {**result,
            "verdict": "better" if result["gain"] > 0 else "worse" if result["gain"] < 0 else "undecided"}


def late(self, records, others):
    """Scores "before" after the training, which changed the model in place."""
    train, test = self.split(records)
    model, tokenizer = self.load()
    trained = self.train(model, tokenizer, train)
    before, after = (self.evaluate(one, tokenizer, test) for one in (model, trained))
    return {"domain": self.decide(before, after), "outside": self.decide(before, after)}


def tested_on_training(self, records, others):
    train, test = self.split(records)
    model, tokenizer = self.load()
    before = [self.evaluate(model, tokenizer, part) for part in (test, others)]
    model = self.train(model, tokenizer, records)
    after = [self.evaluate(model, tokenizer, part) for part in (test, others)]
    return {name: self.decide(*pair)
            for name, *pair in zip(("domain", "outside"), before, after, strict=True)}


def other_questions(self, records, others):
    train, test = self.split(records)
    model, tokenizer = self.load()
    before = [self.evaluate(model, tokenizer, part) for part in (test, others)]
    model = self.train(model, tokenizer, train)
    return {"domain": self.decide(before[0], self.evaluate(model, tokenizer, test[::-1])), "outside": {}}


def only_the_domain(self, records, others):
    train, test = self.split(records)
    model, tokenizer = self.load()
    before = [self.evaluate(model, tokenizer, part) for part in (test, others)]
    model = self.train(model, tokenizer, train)
    return {"domain": self.decide(before[0], self.evaluate(model, tokenizer, test))}


def forgotten(self, records, others):
    return {"domain": Proof.run(self, records, others)["domain"]}


RIGHT = [("12.1", Comparator), ("12.2", Proof)]
WRONG = [
    ("12.1", Crashing, "check.12.1.failed"),
    ("12.1", Together, "check.12.1.together"),
    ("12.1", broken("run", lambda self, table: table.drop("absent")), "check.12.1.rows"),
    ("12.1", broken("run", lambda self, table: table.drop(columns="spread")), "check.12.1.columns"),
    ("12.1", broken("run", lambda self, table: table.to_dict()), "check.12.1.table"),
    ("12.1", broken("row", lambda self, row, name: row if "answers" in row else {"error": "failed"}),
     "check.12.1.reason"),
    ("12.1", broken("row", lambda self, row, name: row if name != "broken" else {"error": ""}),
     "check.12.1.empty"),
    ("12.1", broken("quality", per_token), "check.12.1.per_token"),
    ("12.1", broken("quality", mean_of_texts), "check.12.1.quality"),
    ("12.1", broken("answers", lambda self, right, *_: right[::-1]), "check.12.1.answers"),
    ("12.1", broken("row", lambda self, row, name: {**row, "answers": None}), "check.12.1.no_answers"),
    ("12.1", broken("memory", lambda self, right, model: model.num_parameters() * 2 / 1e6),
     "check.12.1.memory"),
    ("12.1", broken("memory", lambda self, right, model: right * 1e6 / 2**20), "check.12.1.memory"),
    ("12.1", broken("estimate", lambda self, right, model, precision: right * 1.2), "check.12.1.estimate"),
    ("12.1", broken("speed", lambda self, right, *_: (right[0] / 1000, *right[1:])), "check.12.1.first"),
    ("12.1", broken("speed", one_rate), "check.12.1.mixed"),
    ("12.1", broken("speed", lambda self, right, *_: (*right[:2], 0.0)), "check.12.1.spread"),
    ("12.1", broken("report", lambda self, right: right.replace("broken", "")), "check.12.1.unnamed"),
    ("12.1", broken("report", lambda self, right: right.replace("no room", "")), "check.12.1.silent"),
    ("12.1", broken("report", lambda self, right: "\n".join(
        f"| {name} | no room on this device |" for name in self.results)), "check.12.1.number"),
    ("12.1", broken("report", lambda self, right: right.partition("\n\n")[0]), "check.12.1.unshown"),
    ("12.1", broken("report", lambda self, right: None), "check.12.returned_none"),
    ("12.1", broken("report", lambda self, right: right.splitlines()), "check.12.not_text"),
    ("12.1", type("Unwritten", (Comparator,), {
        "run": lambda self: (_ for _ in ()).throw(NotImplementedError)}), "check.12.unwritten"),
    ("12.1", lambda *_: 1, "check.12.methods"),
    ("12.2", changed(split=at_random), "check.12.2.leak"),
    ("12.2", changed(split=lambda self, records, *_: (records, records[:15])), "check.12.2.both"),
    ("12.2", changed(split=lambda self, records, *_: (records[15:], [])), "check.12.2.share"),
    ("12.2", changed(split=lambda self, records, *_: records), "check.12.2.pair"),
    ("12.2", changed(split=lambda self, records, *_: Proof.split(self, records, 0.25, 7)),
     "check.12.2.shuffle"),
    ("12.2", changed(split=lambda self, records, *_: Proof.split(self, records, 0.25, random.random())),
     "check.12.2.seed"),
    ("12.2", changed(decide=lambda self, before, after: "better"), "check.12.2.decision"),
    ("12.2", changed(decide=lambda self, before, after: Proof.decide(self, after, before)),
     "check.12.2.gain"),
    ("12.2", changed(decide=unpaired), "check.12.2.verdict"),
    ("12.2", changed(decide=by_the_mean), "check.12.2.verdict"),
    ("12.2", changed(run=late), "check.12.2.before"),
    ("12.2", changed(run=tested_on_training), "check.12.2.both"),
    ("12.2", changed(run=other_questions), "check.12.2.same"),
    ("12.2", changed(run=only_the_domain), "check.12.2.outside"),
    ("12.2", changed(run=forgotten), "check.12.2.results"),
    ("12.2", changed(train=lambda self, *_: None, run=lambda self, *_: {"domain": 1}), "check.12.2.trained"),
    ("12.2", changed(run=lambda self, *_: 1 / 0), "check.12.raised"),
    ("12.2", changed(report=lambda self: Proof.report(self).replace("worse", "")), "check.12.2.report"),
    ("12.2", changed(report=lambda self: "better worse"), "check.12.2.report"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = (r"del model|get_memory_footprint|bits_per_character\b.*perplexity|paired_bootstrap|"
            r"near_duplicates\(|reindex|except ")
