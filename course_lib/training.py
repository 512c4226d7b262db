"""What fine-tuning and distillation share: labelled samples, batches, and the settings that are fast on this device.

A sample is {"input_ids": [...], "labels": [...]} with -100 where nothing is to be learned (the prompt, padding);
labels stand at their own position, and losses shift them by one. Lesson 06 measures each of the choices made here.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .runtime import profile, show_progress

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

IGNORED = -100  # a label that no loss counts


def tokenize_chat(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024) -> Dataset:
    """Conversations as labelled samples: the model learns the last answer and its end of turn, nothing of the prompt.

    Args:
        dataset: columns question and answer; or prompt and completion (strings or messages); or messages.
        max_length: the longest sample in tokens. Nothing is cut: an answer without its end teaches not to stop.

    Raises:
        ValueError: no rows, no such columns, a tokenizer without a chat template, messages that don't end with an answer, or
            a sample longer than max_length.
    """
    messages_of = _reader(dataset)
    if not tokenizer.chat_template:
        raise ValueError("tokenizer has no chat template; use the tokenizer of an instruct model")

    def one(row: dict, index: int) -> dict:
        messages = messages_of(row)
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(f"sample {index}: messages must be a prompt and, last, the assistant's answer")
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        if whole[:len(prompt)] != prompt:
            raise ValueError(f"sample {index}: the chat template writes the prompt differently once the answer follows")
        answer = whole[len(prompt):]
        if tokenizer.eos_token_id in answer:  # what the template writes after the end of the turn is never generated
            answer = answer[:answer.index(tokenizer.eos_token_id) + 1]
        if len(prompt) + len(answer) > max_length:
            raise ValueError(f"sample {index} takes {len(prompt)} tokens for the prompt and {len(answer)} for the answer, "
                             f"more than max_length {max_length}: raise max_length or leave the sample out")
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}

    return dataset.map(one, with_indices=True, remove_columns=dataset.column_names)


def _reader(dataset: Dataset) -> Callable[[dict], list[dict[str, str]]]:
    """How to get the messages of a row out of this dataset's columns."""
    if not len(dataset):
        raise ValueError("dataset is empty; it needs at least one sample")
    columns = set(dataset.column_names)
    if {"question", "answer"} <= columns:
        return lambda row: [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    if {"prompt", "completion"} <= columns:
        def turn(value: str | list, role: str) -> list:
            return [{"role": role, "content": value}] if isinstance(value, str) else value
        return lambda row: turn(row["prompt"], "user") + turn(row["completion"], "assistant")
    if "messages" in columns:
        return lambda row: row["messages"]
    raise ValueError(f"dataset has the columns {sorted(columns)}; it needs question and answer, prompt and completion, "
                     "or messages")


def tokenize_texts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, column: str = "text",
) -> Dataset:
    """Plain texts as samples in which every token is learned, with the end of text; what exceeds max_length is cut.

    Raises:
        ValueError: no rows, or no such column.
    """
    if not len(dataset) or column not in dataset.column_names:
        raise ValueError(f"dataset has {len(dataset)} rows and the columns {dataset.column_names}; it needs {column!r}")

    def one(row: dict) -> dict:
        ids = (tokenizer(row[column])["input_ids"] + [tokenizer.eos_token_id])[:max_length]
        return {"input_ids": ids, "labels": list(ids)}

    return dataset.map(one, remove_columns=dataset.column_names)


def cut_into_blocks(samples: Dataset, length: int) -> Dataset:
    """Tokenized samples joined in order and cut into rows of exactly `length` tokens: nothing to pad, equal budgets.

    What remains at the end is left out. A row may hold the end of one text and the start of the next.

    Raises:
        ValueError: length below 2, or fewer tokens than one row.
    """
    from datasets import Dataset

    tokens = sum(map(len, samples["input_ids"]))
    count = tokens // length if length >= 2 else 0
    if not count:
        raise ValueError(f"length is {length}; it must be at least 2 and at most the {tokens} tokens there are")
    joined = {name: [token for row in samples[name] for token in row] for name in ("input_ids", "labels")}
    return Dataset.from_dict({name: [row[start * length:(start + 1) * length] for start in range(count)]
                              for name, row in joined.items()})


@dataclass
class LabelledCollator:
    """Samples to tensors, padded on the right to the longest of the batch: (B, T) input_ids, attention_mask, labels.

    The columns of a stored teacher (`distill.store_teacher_topk`) hold a row for each labelled position; they are
    joined in the order of the samples.
    """

    pad_token_id: int
    pad_to: int | None = None  # a fixed T, for measuring what padding costs

    def __call__(self, samples: list[dict]) -> dict[str, torch.Tensor]:
        import torch

        longest = self.pad_to or max(len(sample["input_ids"]) for sample in samples)

        def padded(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([list(sample[key]) + [filler] * (longest - len(sample[key])) for sample in samples])

        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        batch = {"input_ids": padded("input_ids", self.pad_token_id), "labels": padded("labels", IGNORED),
                 "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}
        if "teacher_tokens" in samples[0]:
            for key in ("teacher_tokens", "teacher_logprobs"):
                batch[key] = torch.cat([torch.as_tensor(sample[key]) for sample in samples])
        return batch


@lru_cache
def fast_dtype(device: str = "cpu") -> torch.dtype:
    """The type in which this device multiplies matrices fastest at no risk: bf16 where that pays, else fp32 (old GPUs: fp16).

    A CPU is asked by timing one product of a small model: bf16 is up to five times as fast with AVX-512 BF16 or AMX,
    and slower without.
    """
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device != "cpu":
        return torch.float32

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        readings = []
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            readings.append(time.perf_counter() - started)
        return min(readings)

    return torch.bfloat16 if 1.5 * seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def fast_attention(model: PreTrainedModel, longest: int) -> None:
    """Choose the attention kernel for training on this device.

    On a CPU the flash kernel's backward pass loses to plain matrix products up to about 512 tokens, and beyond
    that saves the (T, T) scores. On a GPU transformers' own choice stays.
    """
    if model.device.type == "cpu" and model.config._attn_implementation in ("eager", "sdpa"):
        wanted = "eager" if longest <= 512 else "sdpa"
        if wanted != model.config._attn_implementation and getattr(model, "_supports_sdpa", True):
            model.set_attn_implementation(wanted)


def arguments(output_dir: str | Path, model: PreTrainedModel, **settings: object) -> TrainingArguments:
    """`TrainingArguments` as this course starts from them: this device's precision and batch size, no reports.

    Anything in `settings` overrides: https://huggingface.co/docs/transformers/main_classes/trainer
    """
    from transformers import TrainingArguments

    return TrainingArguments(str(output_dir), **{**defaults(model), **settings})


def defaults(model: PreTrainedModel) -> dict[str, object]:
    """Arguments of a Trainer for this model on its device."""
    import torch

    device = model.device.type
    compute = fast_dtype(device)
    return {
        "bf16": compute == torch.bfloat16, "fp16": compute == torch.float16, "use_cpu": device == "cpu",
        "per_device_train_batch_size": profile().batch_size, "per_device_eval_batch_size": profile().batch_size,
        "report_to": "none", "disable_tqdm": not show_progress(), "dataloader_pin_memory": device == "cuda",
        "save_strategy": "no", "logging_steps": 1, "optim": "adamw_torch_fused", "lr_scheduler_type": "linear",
    }


def unpack_4bit(model: PreTrainedModel) -> None:
    """Bring 4-bit weights back to the layout that has gradients.

    At the first forward pass in evaluation mode bitsandbytes (0.50) packs them for a CPU with AVX-512 BF16; the product with
    packed weights has no backward pass, and training would go on without an error and learn nothing. The way back rounds the
    scales anew, to 8 bits.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if isinstance(layer, Linear4bit) and getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            layer.state_dict()  # unpacks


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The linear layers by name, without the LM head."""
    import torch

    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head}


def progress(steps: Iterable) -> Iterable:
    """A bar over `steps`, where `show_progress`."""
    from tqdm.auto import tqdm

    return tqdm(steps, disable=not show_progress(), leave=False)


def answer_loss(model: PreTrainedModel, samples: Dataset, batch_size: int = 8) -> float:
    """Mean cross-entropy in nats over all labelled tokens of tokenized samples, whatever the batches.

    Raises:
        ValueError: no sample has a label to predict.
    """
    import torch

    from .fused_loss import Head, head_loss, labelled

    collate, total, count = LabelledCollator(0), 0.0, 0
    training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            batch = collate([samples[index] for index in range(start, min(start + batch_size, len(samples)))])
            hidden, targets = labelled(model, {name: value.to(model.device) for name, value in batch.items()})
            total += float(head_loss(hidden, Head.of(model), targets, num_items=1)[2])
            count += len(targets)
    model.train(training)
    if not count:
        raise ValueError(f"samples are {len(samples)}, and none has a label to predict; give at least one")
    return total / count
