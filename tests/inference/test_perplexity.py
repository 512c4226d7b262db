"""Losses against transformers' own and against one forward pass a token, whatever the windows and batches."""
import copy
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from course_lib.inference import perplexity
from course_lib.models.lm_head import IGNORED

pytestmark = pytest.mark.usefixtures("one_thread")
LONG = "Small models run on a laptop. They answer in a moment, and nobody else reads along. " * 4
TEXTS = ["The sky is blue.", "물은 섭씨 100도에서 끓습니다.", LONG]


# --- the loss on labelled tokens ------------------------------------------------------------------

PROMPT = 4  # tokens of a sample that carry no label


def sample(answer, seed):
    """A sample of random tokens, of which the last `answer` are labelled."""
    ids = torch.randint(3, 250, (PROMPT + answer,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"input_ids": ids, "labels": [IGNORED] * PROMPT + ids[PROMPT:]}


SAMPLES = Dataset.from_list([sample(3 * index + 1, index) for index in range(5)])


def test_the_answer_loss_of_one_sample_is_transformers_own(tiny):
    model, _ = tiny
    for row in SAMPLES:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
        expected = pytest.approx(model(**inputs).loss.item(), abs=1e-5)
        assert perplexity.answer_loss(model, Dataset.from_list([row])) == expected
        assert perplexity.answer_loss(model, [row]) == expected  # a plain list will do


def test_every_token_counts_the_same_whatever_the_batches(tiny):
    model, _ = tiny
    single = [(perplexity.answer_loss(model, [row]), len(row["labels"]) - PROMPT) for row in SAMPLES]
    expected = sum(loss * tokens for loss, tokens in single) / sum(tokens for _, tokens in single)
    for size in (1, 2, 5, 8):
        assert perplexity.answer_loss(model, SAMPLES, batch_size=size) == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(sum(loss for loss, _ in single) / 5, abs=1e-3)


def test_measuring_leaves_the_model_as_it_was(tiny):
    model, _ = tiny
    for mode in (True, False):
        model.train(mode)
        perplexity.answer_loss(model, SAMPLES)
        assert model.training == mode and all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_over_no_labels_is_an_error(tiny):
    with pytest.raises(ValueError, match="samples are 1, and none has a label to predict"):
        perplexity.answer_loss(tiny[0], Dataset.from_list([{"input_ids": [3, 4], "labels": [3, IGNORED]}]))
    with pytest.raises(ValueError, match="samples are 0"):
        perplexity.answer_loss(tiny[0], SAMPLES.select([]))


# --- many short texts -----------------------------------------------------------------------------

def test_perplexities_equal_one_text_at_a_time(tiny):
    """The oracle: transformers' own loss, without a batch and without padding."""
    model, tokenizer = tiny
    texts = ["Hello there", "a", "A longer text, so that the others are padded.", "", "한국어"]
    values = perplexity.perplexities(model, tokenizer, texts, max_length=120)
    for text, value in zip(texts, values, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] < 2:
            assert value == math.inf
        else:
            with torch.no_grad():
                assert value == pytest.approx(model(ids, labels=ids).loss.exp().item(), rel=1e-4)
    assert perplexity.perplexities(model, tokenizer, []) == []


def test_perplexities_look_at_the_start_only(tiny):
    text = "The same start, then something else."
    ends = (" A", " Quite another end")
    one, other = (perplexity.perplexities(*tiny, [text + end], max_length=20) for end in ends)
    assert one == other


def test_no_forward_pass_is_larger_than_asked(tiny):
    model, tokenizer = tiny
    shapes = []

    def note(module, args, named):
        shapes.append(named["input_ids"].shape)

    model.register_forward_pre_hook(note, with_kwargs=True)
    texts = ["word " * count for count in range(1, 12)]
    perplexity.perplexities(model, tokenizer, texts, max_length=50, batch_tokens=50)
    assert all(math.prod(shape) <= 50 for shape in shapes) and 3 < len(shapes) < 11


# --- texts of any length --------------------------------------------------------------------------

def token_losses(model, ids, max_length):
    """The loss of each token but the first with as much context as fits, one forward pass a token."""
    losses = []
    for place in range(1, len(ids)):
        context = ids[max(0, place + 1 - max_length):place]
        with torch.inference_mode():
            logits = model(torch.tensor([context])).logits[0, -1].float()
        losses.append(float(-logits.log_softmax(-1)[ids[place]]))
    return losses


def test_short_texts_are_scored_as_they_are(tiny):
    model, tokenizer = tiny
    result = perplexity.perplexity(model, tokenizer, TEXTS[:2])
    losses = [loss for text in TEXTS[:2] for loss in token_losses(model, tokenizer(text)["input_ids"], 256)]
    assert result.tokens == len(losses) and result.nats == pytest.approx(sum(losses), rel=1e-4)
    assert result.per_token == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)


def test_stride_1_gives_every_token_its_full_context(tiny):
    model, tokenizer = tiny
    losses = token_losses(model, tokenizer(LONG)["input_ids"], 32)
    result = perplexity.perplexity(model, tokenizer, LONG, stride=1, max_length=32, batch_size=64)
    assert result.tokens == len(losses) and result.nats == pytest.approx(sum(losses), rel=1e-4)


@pytest.mark.parametrize("stride, max_length", [(1, 2), (1, 16), (7, 16), (15, 16), (50, 100), (300, 400)])
def test_windows_hold_each_token_once_with_context(stride, max_length):
    for size in (2, 3, 15, 16, 17, 31, 100, 333):
        ids = list(range(1000, 1000 + size))
        windows = list(perplexity._windows(ids, max_length, stride))
        scored = [label for window in windows for label in window["labels"] if label != IGNORED]
        assert scored == ids[1:], size
        for window in windows:
            assert len(window["input_ids"]) == len(window["labels"]) <= max_length
            assert window["labels"][0] == IGNORED  # the loss shifts: what stands first is never predicted


def test_characters_compare_tokenizers(tiny):
    model, tokenizer = tiny
    result = perplexity.perplexity(model, tokenizer, ["abcd", "efg"])
    assert (result.tokens, result.characters) == (5, 5)  # a token a byte; the first has no context
    korean = perplexity.perplexity(model, tokenizer, "물이다")
    assert (korean.tokens, korean.characters) == (8, 2)  # three bytes a syllable
    assert korean.per_character == pytest.approx(korean.per_token ** 4)
    assert korean.bits_per_character == pytest.approx(math.log2(korean.per_character))


def test_a_start_token_lets_every_character_count(tiny):
    model, tokenizer = tiny
    starts = copy.deepcopy(tokenizer)
    starts._tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A",
                                                          special_tokens=[("<|im_start|>", 1)])
    result = perplexity.perplexity(model, starts, "abcd")
    assert (result.tokens, result.characters) == (4, 4)


def test_perplexity_does_not_depend_on_the_batch(tiny):
    model, tokenizer = tiny
    model.train()
    one, three = (perplexity.perplexity(model, tokenizer, TEXTS, batch_size=size, max_length=64).nats
                  for size in (1, 3))
    assert one == pytest.approx(three, rel=1e-4) and model.training


@pytest.mark.parametrize("texts, settings, message", [
    ([], {}, "texts are 0"), (["a", ""], {}, "texts are 2, and none has two tokens"),
    (["abc"], {"stride": 0}, "stride 0"), (["abc"], {"stride": 16, "max_length": 16}, "stride 16"),
    (["abc"], {"max_length": 513}, "max_length is 513"),
    (["abc"], {"max_length": 1}, "max_length is 1"), (["abc"], {"batch_size": 0}, "batch_size 0"),
])
def test_perplexity_refuses(tiny, texts, settings, message):
    with pytest.raises(ValueError, match=message):
        perplexity.perplexity(*tiny, texts, **settings)
