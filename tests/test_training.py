"""Samples, batches and settings of training, against the templates they come from and transformers' own loss."""
import copy

import pytest
import torch
from datasets import Dataset

from course_lib import training
from course_lib.training import LabelledCollator, answer_loss, fast_attention, fast_dtype, tokenize_chat, tokenize_texts

pytestmark = pytest.mark.usefixtures("one_thread")


QUESTION, ANSWER = "What is 2 + 2?", "Four. 넷이에요!"
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
    prompt = sample["input_ids"][:len(sample["input_ids"]) - len(learned(sample))]  # what `chat` gives the model
    assert prompt == tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("form", [{"messages": EARLIER + TURNS}, {"prompt": EARLIER + TURNS[:1], "completion": TURNS[1:]}],
                         ids=["messages", "prompt, completion"])
def test_of_several_turns_only_the_last_answer_is_learned(tiny, form):
    _, tokenizer = tiny
    sample = tokenize_chat(Dataset.from_list([form]), tokenizer)[0]
    assert tokenizer.decode(learned(sample)) == ANSWER + "<|im_end|>"
    assert "Be brief." in tokenizer.decode(sample["input_ids"]) and "Hello." in tokenizer.decode(sample["input_ids"])


def test_rows_stay_in_order_and_other_columns_go(tiny):
    rows = [{"question": f"q{index}", "answer": "a" * (index + 1), "topic": "t"} for index in range(5)]
    samples = tokenize_chat(Dataset.from_list(rows), tiny[1])
    assert samples.column_names == ["input_ids", "labels"]
    assert [tiny[1].decode(learned(sample), skip_special_tokens=True) for sample in samples] == [row["answer"] for row in rows]


def test_the_longest_sample_that_fits_is_kept_whole(tiny):
    dataset = Dataset.from_list([{"question": "q", "answer": "ok"}, {"question": "q", "answer": "x" * 40}])
    whole = len(tokenize_chat(dataset, tiny[1])[1]["input_ids"])
    assert len(tokenize_chat(dataset, tiny[1], max_length=whole)[1]["input_ids"]) == whole
    with pytest.raises(ValueError, match=rf"sample 1 takes {whole - 41} tokens for the prompt and 41 for the answer, more than "
                                         f"max_length {whole - 1}"):
        tokenize_chat(dataset, tiny[1], max_length=whole - 1)


@pytest.mark.parametrize("rows, words", [
    ([], "dataset is empty"), ([{"text": "a"}], r"columns \['text'\]; it needs question and answer, prompt and completion, or"),
    ([{"question": "a"}], r"columns \['question'\]"),
    ([{"messages": TURNS}, {"messages": TURNS[:1]}], "sample 1: messages must be a prompt and, last, the assistant's answer"),
    ([{"messages": TURNS[1:]}], "sample 0: messages must be"),
    ([{"messages": []}, {"messages": TURNS}], "sample 0: messages must be"),
])
def test_conversations_that_cannot_be_learned_are_named(tiny, rows, words):
    with pytest.raises(ValueError, match=words):
        tokenize_chat(Dataset.from_list(rows), tiny[1])


def test_templates_that_do_not_fit_are_named(tiny):
    dataset, tokenizer = Dataset.from_list([FORMS["messages"]]), copy.deepcopy(tiny[1])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="tokenizer has no chat template; use the tokenizer of an instruct model"):
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


# --- plain texts -------------------------------------------------------------------------------------------------

def test_texts_are_learned_whole_with_their_end(tiny):
    _, tokenizer = tiny
    dataset = Dataset.from_list([{"body": "짧은 글", "id": 1}, {"body": "x" * 30, "id": 2}])
    samples = tokenize_texts(dataset, tokenizer, 20, "body")
    assert samples.column_names == ["input_ids", "labels"] and samples["labels"][:] == samples["input_ids"][:]
    assert tokenizer.decode(samples[0]["input_ids"]) == "짧은 글<|im_end|>"
    assert tokenizer.decode(samples[1]["input_ids"]) == "x" * 20  # cut, so without the end that it has not reached


@pytest.mark.parametrize("rows, words", [([], "dataset has 0 rows"), ([{"body": "a"}], r"columns \['body'\]; it needs 'text'")])
def test_texts_that_are_missing_are_named(tiny, rows, words):
    with pytest.raises(ValueError, match=words):
        tokenize_texts(Dataset.from_list(rows), tiny[1])


def test_blocks_hold_all_tokens_in_order_but_the_last_few():
    samples = Dataset.from_list([{"input_ids": list(range(start, end)), "labels": [-100, *range(start + 1, end)]}
                                 for start, end in ((0, 5), (5, 6), (6, 17))])
    blocks = training.cut_into_blocks(samples, 4)
    assert blocks["input_ids"][:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert blocks["labels"][:2] == [[-100, 1, 2, 3], [4, -100, -100, 7]]
    assert training.cut_into_blocks(samples, 17)["input_ids"][:] == [list(range(17))]


@pytest.mark.parametrize("length", [-3, 0, 1, 5])
def test_blocks_of_no_possible_length_are_refused(length):
    with pytest.raises(ValueError, match=f"length is {length}; it must be at least 2 and at most the 4 tokens there are"):
        training.cut_into_blocks(Dataset.from_list(SAMPLES), length)


# --- batches -----------------------------------------------------------------------------------------------------

SAMPLES = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]


def test_samples_are_padded_on_the_right_to_the_longest():
    batch = LabelledCollator(9)(SAMPLES)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]], "labels": [[-100, 6, 7], [8, -100, -100]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]]}
    assert all(value.dtype == torch.long for value in batch.values())
    assert LabelledCollator(9, pad_to=5)(SAMPLES)["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    again = LabelledCollator(9)(list(Dataset.from_list(SAMPLES).with_format("torch")))
    assert all(torch.equal(again[name], batch[name]) for name in batch)


def test_a_real_token_that_equals_the_padding_is_seen():
    batch = LabelledCollator(7)(SAMPLES)
    assert batch["attention_mask"].sum() == 4 and batch["labels"][0].tolist() == [-100, 6, 7]


def test_stored_teachers_are_joined_in_the_order_of_the_samples():
    stored = [{**SAMPLES[0], "teacher_tokens": [[1, 2], [3, 4]], "teacher_logprobs": [[-0.1, -3.0], [-0.2, -2.0]]},
              {**SAMPLES[1], "teacher_tokens": [], "teacher_logprobs": []},
              {**SAMPLES[0], "teacher_tokens": [[5, 6], [7, 8]], "teacher_logprobs": [[-0.3, -1.0], [-0.4, -1.5]]}]
    batch = LabelledCollator(0)(stored)
    assert batch["teacher_tokens"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert batch["teacher_logprobs"].flatten().tolist() == pytest.approx([-0.1, -3.0, -0.2, -2.0, -0.3, -1.0, -0.4, -1.5])
    as_tensors = [{name: torch.tensor(value) for name, value in sample.items()} for sample in stored]
    again = LabelledCollator(0)(as_tensors)
    assert all(torch.equal(again[name], batch[name]) for name in batch)
    assert "teacher_tokens" not in LabelledCollator(0)(SAMPLES)


# --- settings that are fast ----------------------------------------------------------------------------------------

def test_the_fast_type_of_a_cpu_is_one_that_trains_safely():
    assert fast_dtype("cpu") in (torch.bfloat16, torch.float32) and fast_dtype("mps") == torch.float32
    assert fast_dtype("cpu") is fast_dtype("cpu")


@pytest.mark.parametrize("slowdown, expected", [(1.0, torch.float32), (0.5, torch.bfloat16), (3.0, torch.float32)])
def test_bf16_is_chosen_where_it_is_measured_faster(monkeypatch, slowdown, expected):
    clock, product = [0.0], torch.Tensor.__matmul__

    def timed(left, right):
        clock[0] += slowdown if left.dtype == torch.bfloat16 else 1.0
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    assert fast_dtype.__wrapped__("cpu") == expected


@pytest.mark.parametrize("bf16, expected", [(True, torch.bfloat16), (False, torch.float16)])
def test_old_gpus_train_in_fp16(monkeypatch, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert fast_dtype.__wrapped__("cuda") == fast_dtype.__wrapped__("cuda:1") == expected


@pytest.mark.parametrize("longest, expected", [(10, "eager"), (512, "eager"), (513, "sdpa")])
@pytest.mark.parametrize("start", ["eager", "sdpa"])
def test_short_samples_get_plain_attention_and_the_same_loss(tiny, longest, expected, start):
    model, _ = tiny
    model.set_attn_implementation(start)
    ids = torch.randint(3, 250, (2, 10))
    before = model(ids, labels=ids).loss.item()
    fast_attention(model, longest)
    assert model.config._attn_implementation == expected
    assert model(ids, labels=ids).loss.item() == pytest.approx(before, abs=1e-5)


def test_arguments_start_from_the_device_and_can_be_overridden(tiny, tmp_path):
    model, _ = tiny
    plain = training.arguments(tmp_path, model)
    assert plain.device.type == "cpu" and plain.per_device_train_batch_size == 4 and plain.report_to == []
    assert plain.bf16 == (fast_dtype("cpu") == torch.bfloat16) and not plain.fp16
    changed = training.arguments(tmp_path, model, per_device_train_batch_size=2, bf16=False, learning_rate=1e-3)
    assert (changed.per_device_train_batch_size, changed.bf16, changed.learning_rate) == (2, False, 1e-3)


# --- answer_loss -------------------------------------------------------------------------------------------------

CHATS = [{"question": f"q{index}", "answer": "y" * (3 * index + 1)} for index in range(5)]


def test_the_answer_loss_of_one_sample_is_transformers_own(tiny):
    model, tokenizer = tiny
    for sample in tokenize_chat(Dataset.from_list(CHATS), tokenizer):
        expected = model(input_ids=torch.tensor([sample["input_ids"]]), labels=torch.tensor([sample["labels"]])).loss.item()
        assert answer_loss(model, Dataset.from_list([sample])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_every_token_counts_the_same_whatever_the_batches(tiny, size):
    model, samples = tiny[0], tokenize_chat(Dataset.from_list(CHATS), tiny[1])
    single = [(answer_loss(model, samples.select([index])), len(learned(samples[index]))) for index in range(5)]
    expected = sum(loss * tokens for loss, tokens in single) / sum(tokens for _, tokens in single)
    assert answer_loss(model, samples, batch_size=size) == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(sum(loss for loss, _ in single) / 5, abs=1e-3)


def test_measuring_leaves_the_model_as_it_was(tiny):
    model, samples = tiny[0], tokenize_chat(Dataset.from_list(CHATS), tiny[1])
    for mode in (True, False):
        model.train(mode)
        answer_loss(model, samples)
        assert model.training == mode and all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_over_no_labels_is_an_error(tiny):
    with pytest.raises(ValueError, match="samples are 1, and none has a label to predict"):
        answer_loss(tiny[0], Dataset.from_list([{"input_ids": [3, 4], "labels": [3, -100]}]))
    with pytest.raises(ValueError, match="samples are 0"):
        answer_loss(tiny[0], Dataset.from_list(SAMPLES).select([]))
