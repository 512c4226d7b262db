"""Both ends of distillation: a student cut out of its teacher, and a teacher that need not be in memory.

`make_student` keeps chosen layers of a model; `layer_influence` helps to choose (Men et al. 2024, ShortGPT, arXiv
2403.03853, section 2.2: block influence). `store_teacher_topk` writes what a teacher predicts once, as a dataset that
`DistillationTrainer` trains from. `respond_and_collect` keeps only the teacher's words. Lesson 05 uses all of them.
"""
from __future__ import annotations

import copy
import json
import math
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .fused_loss import Head, Target, labelled, rows_of_a_block
from .records import read_appended
from .training import IGNORED, LabelledCollator, progress

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def make_student(model: PreTrainedModel, layers: Iterable[int]) -> PreTrainedModel:
    """A model of the same kind with only these layers of `model`, their weights copied; embeddings and head as they are.

    Config, layer indices and so the KV cache fit the new depth; `save_pretrained` and `from_pretrained` work as ever.

    Args:
        layers: indices into the teacher's layers, ascending, 0 to num_hidden_layers - 1.

    Raises:
        ValueError: indices that are no such list, or a quantized model.
    """
    kept, depth = list(layers), model.config.num_hidden_layers
    if not kept or kept != sorted(set(kept) & set(range(depth))):
        raise ValueError(f"layers is {kept}; it must hold different indices in ascending order, from 0 to {depth - 1}")
    if getattr(model, "quantization_method", None):
        raise ValueError("model is quantized, and packed weights can't be trained; load it in fp32 or bf16")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    for name, value in vars(model.config).items():  # layer_types, no_rope_layers, …
        if "layer" in name and isinstance(value, list) and len(value) == depth:
            setattr(config, name, [value[index] for index in kept])
    student = type(model)._from_config(config, dtype=model.dtype, attn_implementation=model.config._attn_implementation)
    place = {old: new for new, old in enumerate(kept)}
    weights = {}
    for name, value in model.state_dict().items():
        found = re.search(r"\.layers\.(\d+)\.", name)
        if found is None:
            weights[name] = value
        elif int(found[1]) in place:
            weights[name.replace(found[0], f".layers.{place[int(found[1])]}.", 1)] = value
    student.load_state_dict(weights)
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).train(model.training)


@torch.inference_mode()
def layer_influence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[float]:
    """How much each layer changes its input: 1 - cosine similarity of its input and output, mean over the tokens of `texts`.

    0 means that a layer passes everything through. Men et al. 2024, arXiv 2403.03853, equation 1.

    Raises:
        ValueError: no texts, or an empty one.
    """
    if not texts or not all(texts):
        raise ValueError("texts is empty or holds an empty text; give at least one, all with text")
    sums, count = [0.0] * model.config.num_hidden_layers, 0

    def watch(index: int):
        def hook(_, inputs: tuple, output: torch.Tensor | tuple) -> None:
            after = output[0] if isinstance(output, tuple) else output
            similarity = torch.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
            sums[index] += float((1 - similarity).sum())
        return hook

    hooks = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(model.get_decoder().layers)]
    try:
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
            model.get_decoder()(ids, use_cache=False)
            count += ids.shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    return [total / count for total in sums]


def live_target(head: Head, hidden: torch.Tensor, temperature: float) -> Target:
    """The log-probabilities of a teacher in memory, out of its final hidden states (N, H) of the labelled rows."""
    weight = head.weight.detach()
    states, block = hidden.to(weight.dtype), rows_of_a_block(weight, weight.dtype)
    first, products = 0, states[:0] @ weight.T  # the block at hand: rows are asked for in order, a few at a time

    def target(rows: slice, _: torch.Tensor | None) -> torch.Tensor:
        nonlocal first, products
        start, stop, _ = rows.indices(len(states))
        if start < first or stop > first + len(products):
            first, products = start, states[start:max(stop, start + block)] @ weight.T
        return head.finish(products[start - first:stop - first]).div_(temperature).log_softmax(-1)

    return target


def stored_target(tokens: torch.Tensor, logprobs: torch.Tensor) -> Target:
    """The log-probabilities of a stored teacher: the k known tokens as stored, the rest shaped like the student's.

    tokens, logprobs: (N, k). What the teacher gave to the other V - k tokens is known only as a sum; spread in
    proportion to the student's own probabilities it adds the least divergence that the k known values allow, and no
    gradient among those tokens. With k = V nothing is left over, and the loss is the full one.
    """
    def target(rows: slice, log_q: torch.Tensor) -> torch.Tensor:
        known, values = tokens[rows].long().to(log_q.device), logprobs[rows].to(log_q)
        teacher_rest = (1 - values.exp().sum(1, keepdim=True)).clamp(min=torch.finfo(log_q.dtype).tiny)
        rest = log_q.scatter(1, known, -math.inf)
        # summed, not 1 minus the known: of a sure student that difference is rounding noise
        scale = teacher_rest.log() - rest.logsumexp(1, keepdim=True)
        return rest.add_(scale).scatter_(1, known, values)
    return target


def store_teacher_topk(
    teacher: PreTrainedModel, dataset: Dataset, path: str | Path, *, k: int = 64, temperature: float = 2.0, batch_size: int = 8,
) -> Dataset:
    """Run the teacher over a tokenized dataset once, and write its k likeliest next tokens at every labelled position.

    The result is `dataset` with teacher_tokens and teacher_logprobs (positions, k), log-probabilities at the temperature,
    as an Arrow folder at `path` (k · 8 bytes a token); `datasets.load_from_disk` reads it without a teacher. It is
    written under another name first: a folder at `path` is complete.

    Raises:
        ValueError: k or temperature out of range, or a dataset without input_ids and labels.
        FileExistsError: `path` holds something already.
    """
    vocabulary = teacher.get_output_embeddings().weight.shape[0]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"k is {k}; it must be from 1 to the vocabulary's {vocabulary}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0, and finite")
    if not {"input_ids", "labels"} <= set(dataset.column_names):
        raise ValueError(f"dataset has the columns {dataset.column_names}; tokenize it first (training.tokenize_chat)")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"path {str(path)!r} exists; load it with datasets.load_from_disk, or remove it")
    from datasets import Features, List, Value, load_from_disk

    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of an interrupted run
    part.mkdir(parents=True)
    features = Features({**dataset.features, "teacher_tokens": List(List(Value("int32"))),
                         "teacher_logprobs": List(List(Value("float32"))), "teacher_temperature": Value("float32"),
                         "teacher_vocabulary": Value("int32")})
    pad = teacher.config.get_text_config().pad_token_id or 0
    collate = LabelledCollator(pad)

    def predict(batch: dict[str, list]) -> dict[str, list]:
        samples = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        tokens, logprobs = _top_k(teacher, collate(samples), k, temperature)
        lengths = [sum(label != IGNORED for label in sample["labels"][1:]) for sample in samples]
        return {"teacher_tokens": [rows.tolist() for rows in tokens.split(lengths)],
                "teacher_logprobs": [rows.tolist() for rows in logprobs.split(lengths)],
                "teacher_temperature": [temperature] * len(samples), "teacher_vocabulary": [vocabulary] * len(samples)}

    stored = dataset.map(predict, batched=True, batch_size=batch_size, features=features, new_fingerprint="teacher-top-k",
                         cache_file_name=str(part / "scratch.arrow"))
    stored.save_to_disk(part / "data")
    (part / "data").rename(path)
    del stored  # Windows doesn't remove a file that is mapped into memory
    shutil.rmtree(part)
    return load_from_disk(path)


@torch.inference_mode()
def _top_k(
    teacher: PreTrainedModel, batch: dict[str, torch.Tensor], k: int, temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and log-probabilities (N, k) of the labelled positions of a batch, on the CPU."""
    teacher.eval()
    hidden, _ = labelled(teacher, {name: value.to(teacher.device) for name, value in batch.items()})
    predict, pieces = live_target(Head.of(teacher), hidden, temperature), []
    for start in range(0, max(len(hidden), 1), 128):  # at least one piece, if an empty one
        pieces.append(predict(slice(start, start + 128), None).topk(k))
    return torch.cat([piece.indices for piece in pieces]).int().cpu(), torch.cat([piece.values for piece in pieces]).cpu()


def respond_and_collect(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], path: str | Path, *,
    max_new_tokens: int = 128, batch_size: int = 8,
) -> Dataset:
    """Response-level distillation: the teacher's greedy answers, as a dataset (question, answer) to fine-tune a student on.

    Any teacher will do, with any tokenizer, for only its words are used. Each batch of answers is appended to `path`
    (JSON Lines) as soon as it is there; called again, it goes on after the last one. An answer that is cut off by
    max_new_tokens, and would teach not to stop, is written with finished = false and left out of the result; so is an
    empty one.

    Raises:
        ValueError: no questions, an empty one, or sizes below 1.
    """
    from datasets import Dataset

    for name, size in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    questions = list(dict.fromkeys(unicodedata.normalize("NFC", question) for question in questions))
    if not questions or not all(question.strip() for question in questions):
        raise ValueError("questions is empty or holds an empty question; give at least one, all with text")
    path = Path(path)
    known = {row["question"]: row for row in read_appended(path, ("question", "answer", "finished"))}
    left = [question for question in questions if question not in known]
    with path.open("a", encoding="utf-8") as file:
        for start in progress(range(0, len(left), batch_size)):
            asked = left[start:start + batch_size]
            for question, (answer, finished) in zip(asked, _answers(teacher, tokenizer, asked, max_new_tokens), strict=True):
                if answer:
                    known[question] = {"question": question, "answer": answer, "finished": finished}
                    file.write(json.dumps(known[question], ensure_ascii=False) + "\n")
            file.flush()
    rows = [known[question] for question in questions if question in known and known[question]["finished"]]
    return Dataset.from_dict({column: [row[column] for row in rows] for column in ("question", "answer")})


@torch.inference_mode()
def _answers(model, tokenizer, questions: list[str], max_new_tokens: int) -> list[tuple[str, bool]]:
    """Greedy answers of one batch, each with whether it came to its end."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt",
                                           return_dict=True, tokenizer_kwargs={"padding_side": "left"}).to(model.device)
    output = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, temperature=1.0, top_p=1.0, top_k=50,
                            max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
    answers = output[:, inputs["input_ids"].shape[1]:]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    ends = model.generation_config.eos_token_id  # a turn may end with another token than a text, as Gemma's do
    ends = set(ends if isinstance(ends, list) else [ends])
    return [(text.strip(), not ends.isdisjoint(row)) for text, row in zip(texts, answers.tolist(), strict=True)]
