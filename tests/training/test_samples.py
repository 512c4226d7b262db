"""Samples, blocks and batches, against the templates and tokens that they come from."""
import copy

import pytest
import torch
from datasets import Dataset

from course_lib.training.samples import LabelledCollator, cut_into_blocks, tokenize_chat, tokenize_texts

pytestmark = pytest.mark.usefixtures("one_thread")


QUESTION = "What is 2 + 2?"
ANSWER = "Four. 넷이에요!"
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
FORMS = {
    "question, answer": {"question": QUESTION, "answer": ANSWER},
    "question, answer, more": {"question": QUESTION, "answer": ANSWER, "id": "7", "prompt": "unused"},
    "prompt, completion": {"prompt": QUESTION, "completion": ANSWER},
    "prompt, completion as messages": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "messages": {"messages": TURNS},
}


def learned(sample):
    """The tokens that carry a label, which must stand at their own position."""
    assert sample.keys() == {"input_ids", "labels"} and len(sample["labels"]) == len(sample["input_ids"])
    marks = [label != -100 for label in sample["labels"]]
    start = marks.index(True)
    assert marks == [False] * start + [True] * (len(marks) - start)  # one stretch, at the end
    assert sample["labels"][start:] == sample["input_ids"][start:]
    return sample["labels"][start:]


@pytest.mark.parametrize("which", ["tiny", "real"])
@pytest.mark.parametrize("form", FORMS)
def test_exactly_the_answer_and_its_end_are_learned(request, which, form):
    _, tokenizer = request.getfixturevalue(which)
    sample = tokenize_chat(Dataset.from_list([FORMS[form]]), tokenizer)[0]
    assert tokenizer.decode(learned(sample)) == ANSWER + tokenizer.eos_token
    # what `chat` gives the model
    prompt = sample["input_ids"][:len(sample["input_ids"]) - len(learned(sample))]
    assert prompt == tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True,
                                                   return_dict=True)["input_ids"]


@pytest.mark.parametrize("form", [{"messages": EARLIER + TURNS},
                                  {"prompt": EARLIER + TURNS[:1], "completion": TURNS[1:]}],
                         ids=["messages", "prompt, completion"])
def test_of_several_turns_only_the_last_answer_is_learned(tiny, form):
    _, tokenizer = tiny
    sample = tokenize_chat(Dataset.from_list([form]), tokenizer)[0]
    assert tokenizer.decode(learned(sample)) == ANSWER + "<|im_end|>"
    assert "Be brief." in tokenizer.decode(sample["input_ids"])
    assert "Hello." in tokenizer.decode(sample["input_ids"])


def test_rows_stay_in_order_and_other_columns_go(tiny):
    rows = [{"question": f"q{index}", "answer": "a" * (index + 1), "topic": "t"} for index in range(5)]
    samples = tokenize_chat(Dataset.from_list(rows), tiny[1])
    assert samples.column_names == ["input_ids", "labels"]
    assert [tiny[1].decode(learned(sample), skip_special_tokens=True)
            for sample in samples] == [row["answer"] for row in rows]


def test_the_longest_sample_that_fits_is_kept_whole(tiny):
    dataset = Dataset.from_list([{"question": "q", "answer": "ok"}, {"question": "q", "answer": "x" * 40}])
    whole = len(tokenize_chat(dataset, tiny[1])[1]["input_ids"])
    assert len(tokenize_chat(dataset, tiny[1], max_length=whole)[1]["input_ids"]) == whole
    message = (f"sample 1 takes {whole - 41} tokens for the prompt and 41 for the answer, "
               f"more than max_length {whole - 1}")
    with pytest.raises(ValueError, match=message):
        tokenize_chat(dataset, tiny[1], max_length=whole - 1)


@pytest.mark.parametrize("rows, words", [
    ([], "dataset is empty"),
    ([{"text": "a"}], r"columns \['text'\]; it needs question and answer, prompt and completion, or"),
    ([{"question": "a"}], r"columns \['question'\]"),
    ([{"messages": TURNS}, {"messages": TURNS[:1]}],
     "sample 1: messages must be a prompt and, last, the assistant's answer"),
    ([{"messages": TURNS[1:]}], "sample 0: messages must be"),
    ([{"messages": []}, {"messages": TURNS}], "sample 0: messages must be"),
])
def test_conversations_that_cannot_be_learned_are_named(tiny, rows, words):
    with pytest.raises(ValueError, match=words):
        tokenize_chat(Dataset.from_list(rows), tiny[1])


def test_templates_that_do_not_fit_are_named(tiny):
    dataset = Dataset.from_list([FORMS["messages"]])
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = None
    with pytest.raises(ValueError,
                       match="tokenizer has no chat template; use the tokenizer of an instruct model"):
        tokenize_chat(dataset, tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="sample 0: the chat template writes the prompt differently"):
        tokenize_chat(dataset, tokenizer)


def test_of_a_template_without_the_end_token_the_whole_answer_is_learned(tiny):
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}[end]\n{% endfor %}"
                               "{% if add_generation_prompt %}assistant: {% endif %}")
    sample = tokenize_chat(Dataset.from_list([FORMS["messages"]]), tokenizer)[0]
    assert tokenizer.decode(learned(sample)) == ANSWER + "[end]\n"


# --- plain texts -------------------------------------------------------------------------------------------

def test_texts_are_learned_whole_with_their_end(tiny):
    _, tokenizer = tiny
    dataset = Dataset.from_list([{"body": "짧은 글", "id": 1}, {"body": "x" * 30, "id": 2}])
    samples = tokenize_texts(dataset, tokenizer, 20, "body")
    assert samples.column_names == ["input_ids", "labels"] and samples["labels"][:] == samples["input_ids"][:]
    assert tokenizer.decode(samples[0]["input_ids"]) == "짧은 글<|im_end|>"
    # cut, so without the end that it has not reached
    assert tokenizer.decode(samples[1]["input_ids"]) == "x" * 20


@pytest.mark.parametrize("rows, words", [([], "dataset has 0 rows"),
                                         ([{"body": "a"}], r"columns \['body'\]; it needs 'text'")])
def test_texts_that_are_missing_are_named(tiny, rows, words):
    with pytest.raises(ValueError, match=words):
        tokenize_texts(Dataset.from_list(rows), tiny[1])


def test_blocks_hold_all_tokens_in_order_but_the_last_few():
    samples = Dataset.from_list([{"input_ids": list(range(start, end)),
                                  "labels": [-100, *range(start + 1, end)]}
                                 for start, end in ((0, 5), (5, 6), (6, 17))])
    blocks = cut_into_blocks(samples, 4)
    assert blocks["input_ids"][:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert blocks["labels"][:2] == [[-100, 1, 2, 3], [4, -100, -100, 7]]
    assert cut_into_blocks(samples, 17)["input_ids"][:] == [list(range(17))]


@pytest.mark.parametrize("length", [-3, 0, 1, 5])
def test_blocks_of_no_possible_length_are_refused(length):
    with pytest.raises(ValueError,
                       match=f"length is {length}; it must be at least 2 and at most the 4 tokens there are"):
        cut_into_blocks(Dataset.from_list(SAMPLES), length)


# --- batches -----------------------------------------------------------------------------------------------

SAMPLES = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]


def test_samples_are_padded_on_the_right_to_the_longest():
    batch = LabelledCollator(9)(SAMPLES)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]], "labels": [[-100, 6, 7], [8, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    assert all(value.dtype == torch.long for value in batch.values())
    assert LabelledCollator(9, pad_to=5)(SAMPLES)["attention_mask"].tolist() == [[1, 1, 1, 0, 0],
                                                                                 [1, 0, 0, 0, 0]]
    again = LabelledCollator(9)(list(Dataset.from_list(SAMPLES).with_format("torch")))
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_a_real_token_that_equals_the_padding_is_seen():
    batch = LabelledCollator(7)(SAMPLES)
    assert batch["attention_mask"].sum() == 4 and batch["labels"][0].tolist() == [-100, 6, 7]


def test_stored_teachers_are_joined_in_the_order_of_the_samples():
    stored = [{**SAMPLES[0], "teacher_tokens": [[1, 2], [3, 4]],
               "teacher_logprobs": [[-0.1, -3.0], [-0.2, -2.0]]},
              {**SAMPLES[1], "teacher_tokens": [], "teacher_logprobs": []},
              {**SAMPLES[0], "teacher_tokens": [[5, 6], [7, 8]],
               "teacher_logprobs": [[-0.3, -1.0], [-0.4, -1.5]]}]
    batch = LabelledCollator(0)(stored)
    assert batch["teacher_tokens"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert batch["teacher_logprobs"].flatten().tolist() == pytest.approx([-0.1, -3.0, -0.2, -2.0, -0.3, -1.0,
                                                                          -0.4, -1.5])
    as_tensors = [{name: torch.tensor(value) for name, value in sample.items()} for sample in stored]
    again = LabelledCollator(0)(as_tensors)
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert "teacher_tokens" not in LabelledCollator(0)(SAMPLES)
