"""Samples for fine-tuning and distillation: tokenized, labelled, packed into blocks, padded to batches.

A sample is {"input_ids": [...], "labels": [...]}; the label -100 masks the prompt and padding. Labels are not
shifted here; the losses shift them by one. Lesson 06 measures each of these choices.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.lm_head import IGNORED

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def tokenize_chat(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024) -> Dataset:
    """Tokenize conversations; only the last answer and its end are labelled, nothing of the prompt.

    Args:
        dataset: columns question and answer; or prompt and completion (strings or messages); or messages.
        max_length: longest sample in tokens. Nothing is cut: an answer without its end teaches not to stop.

    Raises:
        ValueError: no rows, wrong columns, no chat template, no answer at the end, or a sample too long.
    """
    messages_of = _reader(dataset)
    if not tokenizer.chat_template:
        raise ValueError("tokenizer has no chat template; use the tokenizer of an instruct model")

    def tokens_of(messages: list[dict[str, str]], **options: bool) -> list[int]:
        return tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"]

    def sample_of(row: dict, index: int) -> dict:
        messages = messages_of(row)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(f"sample {index}: messages must be a prompt and, last, the assistant's answer")
        prompt = tokens_of(messages[:-1], add_generation_prompt=True)
        whole = tokens_of(messages)
        if whole[:len(prompt)] != prompt:
            raise ValueError(f"sample {index}: the chat template writes the prompt differently once "
                             "the answer follows")
        answer = whole[len(prompt):]
        if tokenizer.eos_token_id in answer:  # what the template writes after the end is never generated
            answer = answer[:answer.index(tokenizer.eos_token_id) + 1]
        if len(prompt) + len(answer) > max_length:
            raise ValueError(f"sample {index} takes {len(prompt)} tokens for the prompt and {len(answer)} "
                             f"for the answer, more than max_length {max_length}: raise it, or leave it out")
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}

    return dataset.map(sample_of, with_indices=True, remove_columns=dataset.column_names)


def _reader(dataset: Dataset) -> Callable[[dict], list[dict[str, str]]]:
    """A function that reads the messages of a row from this dataset's columns."""
    if not len(dataset):
        raise ValueError("dataset is empty; it needs at least one sample")
    columns = set(dataset.column_names)
    pairs = [pair for pair in (("question", "answer"), ("prompt", "completion")) if set(pair) <= columns]
    if not pairs and "messages" not in columns:
        raise ValueError(f"dataset has the columns {sorted(columns)}; it needs question and answer, "
                         "prompt and completion, or messages")

    def turn(value: str | list, role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": value}] if isinstance(value, str) else value

    def messages_of(row: dict) -> list[dict[str, str]]:
        if not pairs:
            return row["messages"]
        prompt, completion = pairs[0]
        return turn(row[prompt], "user") + turn(row[completion], "assistant")

    return messages_of


def tokenize_texts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, column: str = "text",
) -> Dataset:
    """Tokenize plain texts with an end token, cut at max_length tokens; every token is labelled.

    Raises:
        ValueError: the dataset has no rows or no such column.
    """
    if not len(dataset) or column not in dataset.column_names:
        raise ValueError(f"dataset has {len(dataset)} rows and the columns {dataset.column_names}; "
                         f"it needs {column!r}")

    def sample_of(row: dict) -> dict:
        ids = (tokenizer(row[column])["input_ids"] + [tokenizer.eos_token_id])[:max_length]
        return {"input_ids": ids, "labels": list(ids)}

    return dataset.map(sample_of, remove_columns=dataset.column_names)


def check_tokenized(dataset: Dataset) -> None:
    """Raise a ValueError unless the dataset has the columns input_ids and labels."""
    if not {"input_ids", "labels"} <= set(dataset.column_names):
        raise ValueError(f"dataset has the columns {dataset.column_names}; tokenize it first "
                         "(training.tokenize_chat)")


def cut_into_blocks(samples: Dataset, length: int) -> Dataset:
    """Join tokenized samples in order and cut them into rows of exactly `length` tokens.

    A row may hold the end of one text and the start of the next. This is TRL's "wrapped" packing without the
    shorter last row, so nothing is padded.

    Raises:
        ValueError: length is below 2 or above the number of tokens.
    """
    from trl import pack_dataset

    tokens = sum(map(len, samples["input_ids"]))
    if not 2 <= length <= tokens:
        raise ValueError(f"length is {length}; it must be at least 2 and at most the {tokens} tokens "
                         "there are")
    columns = samples.select_columns(["input_ids", "labels"])
    # batch_size None: by default TRL leaves a shorter row after every thousand samples
    return pack_dataset(columns, length, "wrapped", {"batch_size": None}).select(range(tokens // length))


@dataclass
class LabelledCollator:
    """Pads samples on the right to tensors input_ids, attention_mask and labels, (B, T), as TRL does."""

    pad_token_id: int = 0  # attention masks it
    pad_to: int | None = None  # T becomes a multiple of this: for measuring what padding costs

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        import torch
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        columns = [{name: list(sample[name]) for name in ("input_ids", "labels")} for sample in samples]
        batch = DataCollatorForLanguageModeling(self.pad_token_id, pad_to_multiple_of=self.pad_to)(columns)
        if "teacher_tokens" in samples[0]:  # one row per labelled position, in the samples' order
            for name in ("teacher_tokens", "teacher_logprobs"):
                batch[name] = torch.cat([torch.as_tensor(sample[name]) for sample in samples])
        return batch
