"""Training with the package compared with code that people copy from tutorials.

The baselines keep what makes tutorials slow, but not their errors in the result: full logits and a softmax
at every position; samples padded to 1,024 tokens, with the padding in the labels; a plain `SFTTrainer`.
Models, data, batch size and learning rate are equal on both sides. Ratios are medians over alternating
pairs of one run. `python -m bench` prints the table.
"""
from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from course_lib import loading, runtime
from course_lib.data import texts
from course_lib.inference import meters, perplexity
from course_lib.models.lm_head import IGNORED, Head, head_loss, labelled
from course_lib.training import device, distill, finetune, samples, students, teacher_store

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

PAIRS = 5
LENGTHS = (256, 1024, 4096, 8192)


@dataclass(frozen=True)
class Row:
    """One comparison: median seconds of both sides; median, minimum and maximum of the ratios."""

    name: str
    baseline: float
    ours: float
    ratio: float
    low: float
    high: float
    note: str = ""


def compare(name: str, baseline: Callable[[], float], ours: Callable[[], float], note: str = "") -> Row:
    """Time both sides in alternating pairs after one warm-up each; both functions return seconds."""
    baseline()
    ours()
    pairs = [(baseline(), ours()) for _ in range(PAIRS)]
    ratios = [slow / fast for slow, fast in pairs]
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    row = Row(name, slow, fast, statistics.median(ratios), min(ratios), max(ratios), note)
    print(markdown([row], head=False), flush=True)
    return row


def markdown(rows: list[Row], head: bool = True) -> str:
    lines = ["| what | baseline | ours | ratio | spread | |", "|---|---|---|---|---|---|"] if head else []
    return "\n".join(lines + [f"| {row.name} | {row.baseline:.2f} s | {row.ours:.2f} s | {row.ratio:.2f} | "
                              f"{row.low:.2f} to {row.high:.2f} | {row.note} |" for row in rows])


# --- distillation ---------------------------------------------------------------------------------

def teacher_and_student(precision: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load the teacher and make a student of the most influential third of its layers."""
    teacher, tokenizer = loading.load(runtime.profile().model, precision)
    influence = students.block_influence(teacher, tokenizer, texts.load_corpus("en", "train")["text"][:4])
    kept = sorted(range(len(influence)), key=lambda layer: -influence[layer])[:max(1, len(influence) // 3)]
    return teacher, students.make_student(teacher, sorted(kept)).train()


def random_batch(model: PreTrainedModel, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Make a batch of random token ids (rows, length); the second half of each row is labelled."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=draw)
    labels = ids.clone()
    labels[:, :length // 2] = IGNORED
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    return {name: value.to(model.device) for name, value in batch.items()}


def naive_distillation_step(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: dict, tau: float, alpha: float,
) -> None:
    """Forward and backward pass as in tutorials, with shifted labels and the mean over positions."""
    with torch.no_grad():
        teacher_logits = teacher(batch["input_ids"]).logits[:, :-1]
    student_logits = student(batch["input_ids"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    soft = F.kl_div(F.log_softmax(student_logits / tau, dim=-1).flatten(0, 1),
                    F.softmax(teacher_logits / tau, dim=-1).flatten(0, 1), reduction="batchmean") * tau**2
    hard = F.cross_entropy(student_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    (alpha * soft + (1 - alpha) * hard).backward()
    student.zero_grad()


def our_distillation_step(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: dict, tau: float, alpha: float,
) -> None:
    """Forward and backward pass of `SupervisedDistillationTrainer`, without the optimizer."""
    with torch.inference_mode(), autocast(teacher):
        states, _ = labelled(teacher, batch)
    with autocast(student):
        hidden, targets = labelled(student, batch)
        target = teacher_store.LiveTarget(Head.of(teacher), states, tau)
        loss, _, _ = head_loss(hidden, Head.of(student), targets, teacher=target, temperature=tau,
                               alpha=alpha)
    loss.backward()
    student.zero_grad()


def autocast(model: PreTrainedModel) -> AbstractContextManager:
    """Return the autocast context of a Trainer with `cl.training.training_arguments`."""
    kind = model.device.type
    dtype = device.fast_dtype(kind)
    return nullcontext() if dtype == torch.float32 else torch.autocast(kind, dtype)


def distillation_step(precision: str) -> list[Row]:
    """Compare time and extra peak memory of a distillation step on 4 x 256 tokens."""
    teacher, student = teacher_and_student(precision)
    batch = random_batch(student, 4, 256)
    plan = {"tau": 2.0, "alpha": 0.5}

    def run(step: Callable, attention: str) -> None:
        for model in (teacher, student):
            model.set_attn_implementation(attention)
        step(student, teacher, batch, **plan)

    # attention: transformers' default for the baseline, the choice of fast_attention for ours
    kernel = "eager" if student.device.type == "cpu" else "sdpa"
    sides = (partial(run, naive_distillation_step, "sdpa"), partial(run, our_distillation_step, kernel))
    peaks = []
    for side in sides:
        with meters.peak_bytes() as peak:
            side()
        peaks.append(peak.bytes)
    note = f"extra peak memory {peaks[0] / 1e6:,.0f} → {peaks[1] / 1e6:,.0f} MB: {peaks[1] / peaks[0]:.2f}"
    return [compare(f"distillation step, 4 x 256 tokens, half labelled, models in {precision}",
                    *(partial(meters.seconds, side) for side in sides), note)]


def stored_teacher(blocks: int = 24) -> list[Row]:
    """Compare an epoch with a live teacher and one with its stored top 64, on `blocks` x 128 tokens."""
    teacher, student = teacher_and_student("bf16")
    start = {name: value.clone() for name, value in student.state_dict().items()}
    _, tokenizer = loading.load(runtime.profile().model, "bf16")
    corpus = samples.tokenize_texts(texts.load_corpus("en", "train"), tokenizer)
    corpus = samples.cut_into_blocks(corpus, 128).select(range(blocks))

    def epoch(dataset: Dataset, live: PreTrainedModel | None, folder: str) -> float:
        student.load_state_dict(start)
        plan = device.training_arguments(folder, student, num_train_epochs=1, learning_rate=1e-4)
        trainer = distill.SupervisedDistillationTrainer(student, plan, teacher=live, temperature=2.0,
                                                        train_dataset=dataset)
        return meters.seconds(trainer.train)

    with tempfile.TemporaryDirectory() as folder:
        stored = teacher_store.store_teacher_topk(teacher, corpus, f"{folder}/top64", k=64)
        return [compare(f"distillation epoch, {blocks} x 128 tokens: live teacher against stored top 64",
                        lambda: epoch(corpus, teacher, folder), lambda: epoch(stored, None, folder))]


# --- fine-tuning ----------------------------------------------------------------------------------

def padded_epoch(questions: Dataset, folder: str) -> float:
    """Seconds of an epoch of QLoRA as in tutorials: padded to 1,024 tokens, every token labelled."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import PrinterCallback, Trainer, TrainingArguments

    model, tokenizer = loading.load(runtime.profile().model, "nf4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepare_model_for_kbit_training(model)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, adapter)
    tokenized = samples.tokenize_chat(questions, tokenizer)
    pad = tokenizer.pad_token_id
    padded = [row + [pad] * (1024 - len(row)) for row in tokenized["input_ids"]]
    rows = [{"input_ids": row, "labels": row, "attention_mask": [int(token != pad) for token in row]}
            for row in padded]
    plan = TrainingArguments(folder, per_device_train_batch_size=4, num_train_epochs=1, learning_rate=2e-4,
                             bf16=True, use_cpu=model.device.type == "cpu", report_to="none",
                             save_strategy="no", disable_tqdm=True, logging_strategy="no")
    trainer = Trainer(model, plan, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of the copied code
        return meters.seconds(trainer.train)


def our_epoch(questions: Dataset, precision: str, method: str, batch: int, rate: float = 2e-4) -> float:
    """Seconds of one epoch of `cl.finetune`, without loading the model."""
    model, tokenizer = loading.load(runtime.profile().model, precision)
    result = finetune.finetune(model, tokenizer, questions, method=method, batch_size=batch,
                               learning_rate=rate)
    return result.seconds


def plain_sft(
    questions: Dataset, folder: str, held_out: Dataset | None = None, rate: float = 2e-3,
) -> tuple[float, float]:
    """Train LoRA on all linear layers with `SFTTrainer`; return (seconds, loss on held-out answers)."""
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = loading.load(runtime.profile().model, "bf16")
    plan = SFTConfig(folder, num_train_epochs=1, learning_rate=rate, report_to="none", save_strategy="no",
                     disable_tqdm=True, use_cpu=model.device.type == "cpu")
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(model, plan, train_dataset=texts.to_messages(questions), processing_class=tokenizer,
                         peft_config=adapter)
    trainer.remove_callback(PrinterCallback)
    spent = meters.seconds(trainer.train)
    if held_out is None:
        return spent, float("nan")
    return spent, perplexity.answer_loss(trainer.model, samples.tokenize_chat(held_out, tokenizer))


def fine_tuning(padded: int = 8, plain: int = 16, longer: int = 32) -> list[Row]:
    """Compare `cl.finetune` with padded QLoRA and plain `SFTTrainer`: seconds, and held-out losses."""
    questions = texts.load_qa("ko", "train").shuffle(seed=0)
    held_out = texts.load_qa("ko", "validation").select(range(16))
    with tempfile.TemporaryDirectory() as folder:
        few, some, many = (questions.select(range(count)) for count in (padded, plain, longer))
        _, theirs = plain_sft(many, folder, held_out)
        model, tokenizer = loading.load(runtime.profile().model, "bf16")
        result = finetune.finetune(model, tokenizer, many, batch_size=8, learning_rate=2e-3,
                                   eval_dataset=held_out)
        ours = result.eval_loss[1]
        return [
            compare(f"fine-tuning (QLoRA), {padded} Korean samples: the listing padded to 1,024 against "
                    "finetune",
                    lambda: padded_epoch(few, folder), lambda: our_epoch(few, "nf4", "qlora", 4)),
            compare(f"fine-tuning (LoRA), {plain} Korean samples: plain SFTTrainer against finetune",
                    lambda: plain_sft(some, folder)[0], lambda: our_epoch(some, "bf16", "lora", 8, 2e-3),
                    f"held-out loss after {longer} samples: {theirs:.3f} and {ours:.3f}")]


# --- growth ---------------------------------------------------------------------------------------

def growth(lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, float]]:
    """Measure seconds and extra peak memory (bytes) of a step on one sequence of each length."""
    from peft import LoraConfig, get_peft_model

    teacher, student = teacher_and_student("bf16")
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(loading.load(runtime.profile().model, "bf16")[0], adapter).train()

    def fine_tune(batch: dict) -> None:
        with autocast(tuned):
            hidden, targets = labelled(tuned, batch)
            head_loss(hidden, Head.of(tuned), targets)[0].backward()
        tuned.zero_grad()

    def distill_once(batch: dict) -> None:
        our_distillation_step(student, teacher, batch, 2.0, 0.5)

    rows = []
    for length in lengths:
        batch = random_batch(student, 1, length)
        for model in (teacher, student, tuned):
            device.fast_attention(model, length)
        steps = {"distillation": partial(distill_once, batch), "fine_tuning": partial(fine_tune, batch)}
        for name, step in steps.items():
            spent = min(meters.seconds(step) for _ in range(1 if length > 1024 else 3))
            with meters.peak_bytes() as peak:
                step()
            rows.append({"step": name, "tokens": length, "seconds": spent, "bytes": peak.bytes})
            print(f"| {name} | {length:,} | {spent:.2f} s | {peak.bytes / 1e9:.2f} GB |", flush=True)
    return rows


def run() -> dict[str, list[dict]]:
    """Run all comparisons, print each as it ends, and return the figures for build/bench.json."""
    print("\n| what | baseline | ours | ratio | spread | |\n|---|---|---|---|---|---|", flush=True)
    rows = distillation_step("bf16") + distillation_step("fp32") + stored_teacher() + fine_tuning()
    print("\n| step, one sequence | tokens | time | extra peak memory |\n|---|---|---|---|", flush=True)
    return {"ratios": [asdict(row) for row in rows], "growth": growth()}
