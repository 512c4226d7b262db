"""Our texts, held against their data card and their own rules; loaders; chat format."""
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from course_lib import runtime
from course_lib.data import filters, noise, texts

FOLDER = Path(__file__).parents[2] / "data"
SPLITS = ("train", "validation", "test")
SUBJECTS = ("gen", "slm")
every_language = pytest.mark.parametrize("lang", runtime.LANGUAGES)


def stored(name):
    """The records of one of our files, read apart from the package."""
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


QA = stored("qa.jsonl")
CORPUS = stored("corpus.jsonl")
CHOICES = stored("choices.jsonl")


# --- the files ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, mark", [("qa.jsonl", ""), ("corpus.jsonl", "c"), ("choices.jsonl", "m")])
def test_files_are_tidy(name, mark):
    content = (FOLDER / name).read_bytes()
    records = stored(name)
    assert content.decode() == "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    ids = [record["id"] for record in records]
    assert ids == sorted(set(ids)) and all(re.fullmatch(rf"(gen|slm)-{mark}\d{{3}}", one) for one in ids)
    assert Counter(one[:3] for one in ids) == dict.fromkeys(SUBJECTS, len(ids) // 2)
    assert all(re.fullmatch("[a-z0-9-]+", record["topic"]) for record in records)


def phrases(record, lang):
    part = record[lang]
    if isinstance(part, str):
        return [part]
    return [part["question"], *part.get("choices", [part.get("answer")])]


def test_texts_are_tidy_and_in_their_language():
    for record in [*QA, *CORPUS, *CHOICES]:
        for lang in runtime.LANGUAGES:
            assert all(text == " ".join(text.split()) for text in phrases(record, lang)), record["id"]
        assert re.search("[가-힣]", phrases(record, "ko")[0]), record["id"]
        english = " ".join(phrases(record, "en"))  # items about the Korean language quote it
        assert filters.language_share(english, "en") > 0.9 and re.search("Korean|한글|^[^가-힣]*$",
                                                                         english), record["id"]


def test_korean_answers_are_in_formal_style():
    for record in QA:
        ends = filters.sentences(record["ko"]["answer"])
        assert all(re.search(r"니다\.$", end) for end in ends), record["id"]
        assert re.search(r"(까\?|주세요\.)$", record["ko"]["question"]), record["id"]
    for record in CORPUS:
        assert all(re.search(r"(니다\.|니까\?|시다\.|\)\.)$", end)
                   for end in filters.sentences(record["ko"])), record["id"]


def test_answers_and_paragraphs_have_their_lengths():
    for record in QA:
        assert 12 <= len(record["en"]["answer"].split()) <= 55, record["id"]
        assert 35 <= len(record["ko"]["answer"]) <= 150, record["id"]
    for record in CORPUS:
        assert 65 <= len(record["en"].split()) <= 115 and 170 <= len(record["ko"]) <= 310, record["id"]


def test_splits_are_balanced_over_the_subjects():
    assert Counter((record["id"][:3], record["split"]) for record in QA) == {
        (subject, split): size for subject in SUBJECTS
        for split, size in zip(SPLITS, (148, 18, 18), strict=True)}
    assert Counter((record["id"][:3], record["split"]) for record in CORPUS) == {
        (subject, split): size for subject in SUBJECTS for split, size in (("train", 48), ("test", 16))}


def largest_similarity(some):
    """Largest Jaccard similarity of character 5-grams over all pairs, by matrix products: no hashing."""
    from sklearn.feature_extraction.text import CountVectorizer

    grams = CountVectorizer(analyzer="char", ngram_range=(5, 5), binary=True).fit_transform(some)
    common = (grams @ grams.T).toarray()
    sizes = np.diag(common)
    similarity = common / (sizes[:, None] + sizes[None, :] - common)
    return (similarity - np.eye(len(some))).max()


@every_language
def test_no_two_records_are_near_duplicates(lang):
    """Neither within a split nor across: questions, answers, paragraphs."""
    for some in ([record[lang]["question"] for record in QA + CHOICES],
                 [record[lang]["answer"] for record in QA],
                 [record[lang] for record in CORPUS]):
        assert filters.near_duplicates(some, threshold=0.5) == []
        assert len({filters.normalise(text) for text in some}) == len(some)
        assert largest_similarity(some) < 0.5


@every_language
def test_choices_cannot_be_guessed_from_their_form(lang):
    assert Counter(record["answer"] for record in CHOICES) == dict.fromkeys(range(4), len(CHOICES) // 4)
    for choose in (max, min):  # the longest, the shortest
        hits = 0.0
        for record in CHOICES:
            lengths = [len(choice) for choice in record[lang]["choices"]]
            assert len(set(record[lang]["choices"])) == 4
            best = [place for place, length in enumerate(lengths) if length == choose(lengths)]
            hits += (record["answer"] in best) / len(best)
        assert hits / len(CHOICES) < 0.3


def test_the_data_card_counts_right():
    card = (FOLDER / "README.md").read_text("utf-8")
    for records, what, splits in ((QA, "pairs", SPLITS), (CORPUS, "paragraphs", ("train", "test"))):
        counts = Counter(record["split"] for record in records)
        parts = ", ".join(f"{counts[split]} {split}" for split in splits)
        assert f"| {len(records)} {what} in each language: {parts} |" in card
    assert f"| {len(CHOICES)} questions in each language |" in card and len(QA) >= 300
    means = [np.mean(sizes) for sizes in (
        [len(record["en"]["answer"].split()) for record in QA],
        [len(record["ko"]["answer"]) for record in QA],
        [len(record["en"].split()) for record in CORPUS], [len(record["ko"]) for record in CORPUS])]
    words = "{:.0f} words on average, Korean ones {:.0f} characters; paragraphs {:.0f} words and {:.0f}"
    assert words.format(*means) in card
    error = 50 / math.sqrt(len(CHOICES))
    assert f"with {len(CHOICES)} questions the standard error of an accuracy near 50 % is {error:.1f}" in card


# --- loaders -----------------------------------------------------------------------------------------------

@every_language
def test_questions_load_in_the_same_order_in_both_languages(lang):
    for split in SPLITS:
        dataset = texts.load_qa(lang, split)
        assert dataset.column_names == ["question", "answer", "topic", "id"]
        expected = [record for record in QA if record["split"] == split]
        assert dataset["id"] == [record["id"] for record in expected]
        assert dataset["answer"] == [record[lang]["answer"] for record in expected]


@every_language
def test_choices_load(lang):
    dataset = texts.load_choices(lang)
    assert dataset.column_names == ["question", "choices", "answer", "topic", "id"]
    assert dataset[5] == {**CHOICES[5][lang], **{key: CHOICES[5][key] for key in ("answer", "topic", "id")}}


@every_language
def test_the_corpus_is_damaged_as_asked(lang):
    clean, mixed, noisy = (texts.load_corpus(lang, quality=quality) for quality in texts.QUALITIES)
    assert clean["text"] == [record[lang] for record in CORPUS if record["split"] == "train"]
    assert clean["id"] == mixed["id"] == noisy["id"] and set(clean["kind"]) == {"clean"}
    assert Counter(mixed["kind"])["clean"] == len(clean) // 2
    counts = Counter(noisy["kind"])
    assert set(counts) == set(noise.NOISE_KINDS) and max(counts.values()) - min(counts.values()) <= 1
    for before, half, full in zip(clean, mixed, noisy, strict=True):
        assert full["text"] != before["text"] or full["kind"] == "encoding"
        assert half in (before, full)


def test_damage_follows_the_seed_alone():
    first, again, other = (texts.load_corpus("ko", "test", "noisy", seed=seed).to_list()
                           for seed in (1, 1, 2))
    assert first == again != other
    kinds = [texts.load_corpus(lang, "test", "mixed")["kind"] for lang in runtime.LANGUAGES]
    assert kinds[0] == kinds[1] and len(kinds[0]) == 32


@every_language
def test_the_cheap_filters_tell_damage_from_our_texts(lang):
    """No clean paragraph is lost; of the damaged ones repetition and spam all go, shuffled words all stay."""
    assert len(filters.quality_filter(texts.load_corpus(lang), lang=lang).dropped) == 0
    report = filters.quality_filter(texts.load_corpus(lang, quality="noisy"), lang=lang)
    assert not {"repetition", "spam"} & set(report.kept["kind"])
    assert not {"shuffled", "boilerplate"} & set(report.dropped["kind"])


@pytest.mark.parametrize("call, words", [
    (lambda: texts.load_qa("fr"), "lang is 'fr'; it must be one of en, ko"),
    (lambda: texts.load_qa("en", "dev"), "split is 'dev'; it must be one of train, validation, test"),
    (lambda: texts.load_corpus("en", "validation"), "split is 'validation'; it must be one of train, test"),
    (lambda: texts.load_corpus("en", quality="dirty"),
     "quality is 'dirty'; it must be one of clean, mixed, noisy"),
    (lambda: texts.load_choices("de"), "lang is 'de'"),
    (lambda: texts.to_messages(texts.load_choices("en").remove_columns("answer")),
     "needed is 'answer'; it must be one of")])
def test_what_is_wrong_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- chat format -------------------------------------------------------------------------------------------

def test_messages_are_what_trl_masks_the_prompt_of(tiny, tmp_path):
    """SFTTrainer itself builds the batch: labels on the answer and the end of the turn, nowhere else."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = tiny
    dataset = texts.to_messages(Dataset.from_dict({"question": ["Why?"], "answer": ["So."], "id": ["x"]}))
    assert dataset.to_list() == [{"prompt": [{"role": "user", "content": "Why?"}],
                                  "completion": [{"role": "assistant", "content": "So."}]}]
    options = SFTConfig(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = SFTTrainer(model, options, train_dataset=dataset, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    labelled = batch["labels"][0] != -100
    whole = tokenizer.decode(batch["input_ids"][0])
    assert whole.startswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>")
    assert tokenizer.decode(batch["labels"][0][labelled]).rstrip() == "So.<|im_end|>"


# --- the messages of lesson 12 -----------------------------------------------------------------------------

def test_tickets_are_labelled_by_what_they_say_and_repeat_only_on_purpose():
    tickets = stored("tickets.jsonl")
    assert [record["id"] for record in tickets] == [f"ticket-{number:03}" for number in range(1, 73)]
    topics = ("delivery", "return", "payment", "account")
    assert Counter(record["topic"] for record in tickets[:64]) == dict.fromkeys(topics, 16)
    for record in tickets:
        assert list(record) == ["id", "topic", "en", "ko", "answer"]
        for lang in runtime.LANGUAGES:
            numbers = set(re.findall(r"N-\d{4}", record[lang]))
            assert json.loads(record["answer"]) == {"topic": record["topic"],
                                                    "order": min(numbers, default=None)}
            assert len(numbers) <= 1
            assert filters.language_share(re.sub(r"N-\d+", "", record[lang]), lang) > 0.9
    for lang in runtime.LANGUAGES:
        groups = filters.near_duplicates([record[lang] for record in tickets], threshold=0.5)
        assert [len(group) for group in groups] == [2] * 8
        assert {group[1] for group in groups} == set(range(64, 72))
        assert all(tickets[first]["answer"] == tickets[second]["answer"] for first, second in groups)
