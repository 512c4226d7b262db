"""Training, ours against the code that people copy: each row a ratio out of alternating pairs in one run.

The baselines are what tutorials do, with their mistakes in the result put right and those in speed left in: full logits of
teacher and student and a softmax over every position; samples padded to 1,024 tokens with the padding in the labels;
a plain `SFTTrainer`. Models, data, batch size and learning rate are the same on both sides. `bench` prints the table.
"""
from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from . import data, distill, finetune, loading, memory, runtime, training
from .fused_loss import Head, head_loss, labelled
from .teachers import live_target

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

PAIRS = 5
LENGTHS = (256, 1024, 4096, 8192)


@dataclass(frozen=True)
class Row:
    """One comparison: medians in seconds, the median of the pairs' ratios, and the smallest and the largest."""

    name: str
    baseline: float
    ours: float
    ratio: float
    low: float
    high: float
    note: str = ""


def compare(name: str, baseline: Callable[[], float], ours: Callable[[], float], note: str = "") -> Row:
    """Seconds of both sides, which they return themselves, in alternating pairs after one of each that does not count."""
    baseline(), ours()
    pairs = [(baseline(), ours()) for _ in range(PAIRS)]
    ratios = [slow / fast for slow, fast in pairs]
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    row = Row(name, slow, fast, statistics.median(ratios), min(ratios), max(ratios), note)
    print(markdown([row], head=False), flush=True)
    return row


def markdown(rows: list[Row], head: bool = True) -> str:
    """The rows as lines of a Markdown table."""
    lines = ["| what | baseline | ours | ratio | spread | |", "|---|---|---|---|---|---|"] if head else []
    return "\n".join(lines + [f"| {row.name} | {row.baseline:.2f} s | {row.ours:.2f} s | {row.ratio:.2f} | "
                              f"{row.low:.2f} to {row.high:.2f} | {row.note} |" for row in rows])


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- distillation ------------------------------------------------------------------------------------------------

def students(precision: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The real teacher, and a student of its ten most influential layers."""
    teacher, tokenizer = loading.load(runtime.profile().model, precision)
    influence = distill.layer_influence(teacher, tokenizer, data.load_corpus("en", "train")["text"][:4])
    kept = sorted(range(len(influence)), key=lambda layer: -influence[layer])[:max(1, len(influence) // 3)]
    return teacher, distill.make_student(teacher, sorted(kept)).train()


def random_batch(model: PreTrainedModel, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Token ids (rows, length) with the second half of each row labelled."""
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :length // 2] = training.IGNORED
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    return {name: value.to(model.device) for name, value in batch.items()}


def naive_distillation_step(student: PreTrainedModel, teacher: PreTrainedModel, batch: dict, tau: float, alpha: float) -> None:
    """Forward and backward as listings show it, with the shift added and a mean per position."""
    with torch.no_grad():
        teacher_logits = teacher(batch["input_ids"]).logits[:, :-1]
    student_logits, labels = student(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    soft = F.kl_div(F.log_softmax(student_logits / tau, dim=-1).flatten(0, 1),
                    F.softmax(teacher_logits / tau, dim=-1).flatten(0, 1), reduction="batchmean") * tau**2
    hard = F.cross_entropy(student_logits.flatten(0, 1), labels.flatten(), ignore_index=training.IGNORED)
    (alpha * soft + (1 - alpha) * hard).backward()
    student.zero_grad()


def our_distillation_step(student: PreTrainedModel, teacher: PreTrainedModel, batch: dict, tau: float, alpha: float) -> None:
    """What `DistillationTrainer` does in a step, without the optimizer."""
    device = batch["input_ids"].device.type
    with torch.inference_mode(), autocast(teacher, device):
        states, _ = labelled(teacher, batch)
    with autocast(student, device):
        hidden, targets = labelled(student, batch)
        loss, _, _ = head_loss(hidden, Head.of(student), targets, teacher=live_target(Head.of(teacher), states, tau),
                               temperature=tau, alpha=alpha)
    loss.backward()
    student.zero_grad()


def autocast(model: PreTrainedModel, device: str) -> AbstractContextManager:
    """The precision that a Trainer with `training.arguments` would compute in."""
    dtype = training.fast_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def distillation_step(precision: str) -> list[Row]:
    """Time of a step of 4 x 256 tokens, and the peak memory that it adds."""
    teacher, student = students(precision)
    batch = random_batch(student, 4, 256)
    plan = {"tau": 2.0, "alpha": 0.5}

    def run(step: Callable, attention: str) -> None:
        for model in (teacher, student):
            model.set_attn_implementation(attention)
        step(student, teacher, batch, **plan)

    # each side with the attention kernel that it would have: transformers' default, and training.fast_attention's
    kernel = "eager" if student.device.type == "cpu" else "sdpa"
    sides = (lambda: run(naive_distillation_step, "sdpa")), (lambda: run(our_distillation_step, kernel))
    peaks = []
    for side in sides:
        with memory.peak_bytes() as peak:
            side()
        peaks.append(peak.bytes)
    note = f"extra peak memory {peaks[0] / 1e6:,.0f} → {peaks[1] / 1e6:,.0f} MB: {peaks[1] / peaks[0]:.2f}"
    return [compare(f"distillation step, 4 x 256 tokens, half labelled, models in {precision}", lambda: seconds(sides[0]),
                    lambda: seconds(sides[1]), note)]


def stored_teacher(samples: int = 24) -> list[Row]:
    """An epoch with a live teacher against one from its stored top 64."""
    teacher, student = students("bf16")
    start = {name: value.clone() for name, value in student.state_dict().items()}
    _, tokenizer = loading.load(runtime.profile().model, "bf16")
    texts = training.tokenize_texts(data.load_corpus("en", "train"), tokenizer)
    texts = training.cut_into_blocks(texts, 128).select(range(samples))

    def epoch(dataset: Dataset, live: PreTrainedModel | None, folder: str) -> float:
        student.load_state_dict(start)
        plan = training.arguments(folder, student, num_train_epochs=1, learning_rate=1e-4)
        trainer = distill.DistillationTrainer(student, plan, teacher=live, temperature=2.0, train_dataset=dataset)
        return seconds(trainer.train)

    with tempfile.TemporaryDirectory() as folder:
        stored = distill.store_teacher_topk(teacher, texts, f"{folder}/top64", k=64)
        return [compare(f"distillation epoch, {samples} x 128 tokens: live teacher against stored top 64",
                        lambda: epoch(texts, teacher, folder), lambda: epoch(stored, None, folder))]


# --- fine-tuning -------------------------------------------------------------------------------------------------

def padded_epoch(questions: Dataset, folder: str) -> float:
    """The listing: QLoRA, every sample padded to 1,024 tokens, padding and question in the labels."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import PrinterCallback, Trainer, TrainingArguments

    model, tokenizer = loading.load(runtime.profile().model, "nf4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepare_model_for_kbit_training(model)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    samples = training.tokenize_chat(questions, tokenizer)
    pad = tokenizer.pad_token_id
    padded = [row + [pad] * (1024 - len(row)) for row in samples["input_ids"]]
    rows = [{"input_ids": row, "labels": row, "attention_mask": [int(token != pad) for token in row]} for row in padded]
    plan = TrainingArguments(folder, per_device_train_batch_size=4, num_train_epochs=1, learning_rate=2e-4, bf16=True,
                             use_cpu=model.device.type == "cpu", report_to="none", save_strategy="no", disable_tqdm=True,
                             logging_strategy="no")
    trainer = Trainer(model, plan, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the listing's own: names that are going away
        return seconds(trainer.train)


def our_epoch(questions: Dataset, precision: str, method: str, batch: int, rate: float = 2e-4) -> float:
    """One epoch of `finetune`: training time alone, as for the baselines."""
    model, tokenizer = loading.load(runtime.profile().model, precision)
    return finetune.finetune(model, tokenizer, questions, method=method, batch_size=batch, learning_rate=rate).seconds


def plain_sft(questions: Dataset, folder: str, held_out: Dataset | None = None, rate: float = 2e-3) -> tuple[float, float]:
    """`SFTTrainer` with LoRA on all linear layers and its defaults: (seconds, loss on the held-out answers)."""
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loading.load(runtime.profile().model, "bf16")
    plan = SFTConfig(folder, num_train_epochs=1, learning_rate=rate, report_to="none", save_strategy="no", disable_tqdm=True,
                     use_cpu=model.device.type == "cpu")
    trainer = SFTTrainer(model, plan, train_dataset=data.to_messages(questions), processing_class=tokenizer,
                         peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer.remove_callback(PrinterCallback)
    spent = seconds(trainer.train)
    if held_out is None:
        return spent, float("nan")
    return spent, training.answer_loss(trainer.model, training.tokenize_chat(held_out, tokenizer))


def fine_tuning(padded: int = 8, plain: int = 16, longer: int = 32) -> list[Row]:
    """Korean questions: against the listing and against a plain SFTTrainer; the losses of a longer epoch beside it."""
    questions, held_out = data.load_qa("ko", "train").shuffle(seed=0), data.load_qa("ko", "validation").select(range(16))
    with tempfile.TemporaryDirectory() as folder:
        few, some, many = (questions.select(range(count)) for count in (padded, plain, longer))
        _, theirs = plain_sft(many, folder, held_out)
        model, tokenizer = loading.load(runtime.profile().model, "bf16")
        ours = finetune.finetune(model, tokenizer, many, batch_size=8, learning_rate=2e-3, eval_dataset=held_out).eval_loss[1]
        return [
            compare(f"fine-tuning (QLoRA), {padded} Korean samples: the listing padded to 1,024 against finetune",
                    lambda: padded_epoch(few, folder), lambda: our_epoch(few, "nf4", "qlora", 4)),
            compare(f"fine-tuning (LoRA), {plain} Korean samples: plain SFTTrainer against finetune",
                    lambda: plain_sft(some, folder)[0], lambda: our_epoch(some, "bf16", "lora", 8, 2e-3),
                    f"held-out loss after {longer} samples: {theirs:.3f} and {ours:.3f}")]


# --- growth ------------------------------------------------------------------------------------------------------

def growth(lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, float]]:
    """Seconds and extra peak memory of one step on one sequence, forward and backward, as it grows."""
    from peft import LoraConfig, get_peft_model

    teacher, student = students("bf16")
    tuned = get_peft_model(loading.load(runtime.profile().model, "bf16")[0], LoraConfig(
        r=16, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    rows = []
    for length in lengths:
        batch = random_batch(student, 1, length)
        for model in (teacher, student, tuned):
            training.fast_attention(model, length)

        def fine_tune(batch: dict = batch) -> None:
            with autocast(tuned, batch["input_ids"].device.type):
                hidden, targets = labelled(tuned, batch)
                head_loss(hidden, Head.of(tuned), targets)[0].backward()
            tuned.zero_grad()

        for name, step in (("distillation", lambda batch=batch: our_distillation_step(student, teacher, batch, 2.0, 0.5)),
                           ("fine_tuning", fine_tune)):
            spent = seconds(step) if length > 1024 else min(seconds(step) for _ in range(3))
            with memory.peak_bytes() as peak:
                step()
            rows.append({"step": name, "tokens": length, "seconds": spent, "bytes": peak.bytes})
            print(f"| {name} | {length:,} | {spent:.2f} s | {peak.bytes / 1e9:.2f} GB |", flush=True)
    return rows


def run() -> dict[str, list[dict]]:
    """All of it, printed as it comes, and returned for `build/bench.json`."""
    print("\n| what | baseline | ours | ratio | spread | |\n|---|---|---|---|---|---|", flush=True)
    rows = distillation_step("bf16") + distillation_step("fp32") + stored_teacher() + fine_tuning()
    print("\n| step, one sequence | tokens | time | extra peak memory |\n|---|---|---|---|", flush=True)
    return {"ratios": [asdict(row) for row in rows], "growth": growth()}
