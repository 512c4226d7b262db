"""Knowledge distillation: a student learns a teacher's distribution over the next token.

L = α · τ² · D(teacher at τ ‖ student at τ) + (1 - α) · CE(labels), a mean over the labelled tokens; α weighs the soft
term. Part of the literature puts α on the hard term instead, so say which when you compare numbers. τ² keeps the soft
gradient's size when τ grows (Hinton et al. 2015, arXiv 1503.02531, section 2). D is the forward KL(teacher ‖ student) by
default; reverse KL and Jensen-Shannon after Agarwal et al. 2023 (arXiv 2306.13649, section 3).

`distillation_loss` is the formula on full logits. `DistillationTrainer` computes the same numbers without them
(fused_loss). Students and stored teachers are made in `teachers`. Built by hand in lesson 05.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PrinterCallback, Trainer

from .fused_loss import DIVERGENCES, Head, head_loss, labelled, shifted
from .runtime import check_choice
from .teachers import layer_influence, live_target, make_student, respond_and_collect, store_teacher_topk, stored_target
from .training import IGNORED, LabelledCollator, fast_attention, fast_dtype

__all__ = ["DistillationTrainer", "distillation_loss", "layer_influence", "make_student", "respond_and_collect",
           "store_teacher_topk"]


def distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 2.0,
    alpha: float = 0.5, divergence: str = "forward_kl",
) -> torch.Tensor:
    """The distillation loss of full logits: shifts by one, leaves masked labels out, mean over the labelled tokens.

    Args:
        student_logits, teacher_logits: (B, T, V); position t predicts token t + 1.
        labels: (B, T), -100 where nothing is learned; both terms leave those positions out.
        temperature: τ > 0, on both distributions of the soft term.
        alpha: weight of the soft term, 0 to 1.
        divergence: "forward_kl" KL(teacher ‖ student), "reverse_kl" KL(student ‖ teacher) or "jsd".

    Returns:
        A scalar in fp32 (fp64 for fp64 logits), in nats per token.

    Raises:
        ValueError: settings out of range, shapes that don't fit, all labels masked, or NaN or infinities in the logits.
    """
    _check_settings(temperature, alpha, divergence)
    _check_logits(student_logits, teacher_logits, labels)
    targets = shifted(labels)
    keep = targets != IGNORED
    if not keep.any():
        raise ValueError("labels are -100 at every position that predicts a token: nothing to learn from this batch")
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = student_logits[keep].to(wide), teacher_logits[keep].to(wide)
    hard = torch.nn.functional.cross_entropy(student, targets[keep])
    log_q, log_t = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    soft = divergence_of(log_t, log_q, divergence).mean()
    loss = alpha * temperature**2 * soft + (1 - alpha) * hard
    if not loss.isfinite():
        culprit = "teacher_logits" if student.isfinite().all() else "student_logits"
        raise ValueError(f"{culprit} hold NaN or infinite values; lower the learning rate, or compute in bf16 or fp32 instead "
                         "of fp16")
    return loss


def divergence_of(log_t: torch.Tensor, log_q: torch.Tensor, kind: str) -> torch.Tensor:
    """Divergence (n,) in nats between the teacher's and the student's log-probabilities, each (n, V)."""
    if kind == "forward_kl":
        return (log_t.exp() * (log_t - log_q)).sum(-1)
    if kind == "reverse_kl":
        return (log_q.exp() * (log_q - log_t)).sum(-1)
    log_m = torch.logaddexp(log_t, log_q) - math.log(2)
    return 0.5 * (divergence_of(log_t, log_m, "forward_kl") + divergence_of(log_q, log_m, "forward_kl"))


def _check_settings(temperature: float, alpha: float, divergence: str) -> None:
    check_choice("divergence", divergence, DIVERGENCES)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be above 0, and finite")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 (labels only) to 1 (teacher only)")


def _check_logits(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> None:
    _check_vocabulary(student.shape[-1], teacher.shape[-1])
    if student.shape != teacher.shape or student.shape[:-1] != labels.shape:
        raise ValueError(f"student_logits {tuple(student.shape)}, teacher_logits {tuple(teacher.shape)} and labels "
                         f"{tuple(labels.shape)} don't fit; they must be (B, T, V), (B, T, V) and (B, T)")


def _check_vocabulary(student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(f"the teacher predicts {teacher:,} tokens and the student {student:,}: logits can only be compared "
                         "over one vocabulary. Take models with the same tokenizer; where only padding rows differ "
                         "(Qwen2.5-0.5B against 7B), call resize_token_embeddings on one of them; otherwise distil "
                         "responses (respond_and_collect)")


@dataclass(frozen=True)
class Closeness:
    """How close a student is to its teacher on held-out text.

    Attributes:
        kl: forward KL(teacher ‖ student) at temperature 1, nats per labelled token.
        loss: the student's cross-entropy against the text itself, nats per labelled token.
        agreement: share of positions at which both have the same likeliest token.
    """

    kl: float
    loss: float
    agreement: float


@torch.inference_mode()
def closeness(student, teacher, samples, batch_size: int = 8) -> Closeness:
    """Compare two models on tokenized samples (input_ids, labels); means over all labelled tokens, in evaluation mode.

    Both run in the precision that is fast on their device (`training.fast_dtype`); logits are compared in fp32.
    """
    sums, count = torch.zeros(3, dtype=torch.float64), 0
    heads, modes = (Head.of(student), Head.of(teacher)), (student.training, teacher.training)
    student.eval(), teacher.eval()
    device = student.device.type
    for start in range(0, len(samples), batch_size):
        rows = samples.select(range(start, min(start + batch_size, len(samples))))
        batch = {name: value.to(student.device) for name, value in LabelledCollator(0)(list(rows)).items()}
        with torch.autocast(device, fast_dtype(device), enabled=fast_dtype(device) != torch.float32):
            states = [labelled(model, batch) for model in (student, teacher)]
        targets = states[0][1]
        for rows in torch.arange(len(targets)).split(128):
            log_q, log_t = (head.logits(hidden[rows]).log_softmax(-1) for head, (hidden, _) in zip(heads, states, strict=True))
            sums += torch.tensor([divergence_of(log_t, log_q, "forward_kl").sum(),
                                  -log_q.gather(1, targets[rows, None]).sum(),
                                  (log_q.argmax(-1) == log_t.argmax(-1)).sum()], dtype=torch.float64)
        count += len(targets)
    student.train(modes[0]), teacher.train(modes[1])
    return Closeness(*(sums / count).tolist())


class DistillationTrainer(Trainer):
    """A `transformers.Trainer` that distils; its loss equals `distillation_loss`, without the logits of all positions.

    Both LM heads run on labelled tokens only, block by block (fused_loss). A live teacher runs in inference mode and
    in its own precision; without one, the dataset must come from `store_teacher_topk`. LoRA students, accumulation
    (every labelled token counts the same), checkpoints and `accelerate launch` work as in any Trainer.

    Args:
        model: the student, a causal language model, with or without adapters.
        args: `training.arguments(...)` or any TrainingArguments.
        teacher: a model with the student's vocabulary, or None for a dataset with a stored teacher.
        train_dataset, eval_dataset: samples with input_ids and labels (`training.tokenize_chat`, `tokenize_texts`).
        temperature, alpha, divergence: as in `distillation_loss`.

    Logs `soft_loss` (without τ²) and `hard_loss` beside the loss. Raises ValueError where settings, vocabularies or
    dataset don't fit, where all labels of a batch are masked, and where the loss is no longer a number.
    """

    def __init__(self, model, args=None, *, teacher=None, temperature=2.0, alpha=0.5, divergence="forward_kl",
                 train_dataset=None, data_collator=None, **others) -> None:
        _check_settings(temperature, alpha, divergence)
        self.teacher, self.plan = teacher, {"temperature": temperature, "alpha": alpha, "divergence": divergence}
        vocabulary = Head.of(model).weight.shape[0]
        if teacher is not None:
            _check_vocabulary(vocabulary, Head.of(teacher).weight.shape[0])
            teacher.eval()
        for dataset in (train_dataset, others.get("eval_dataset")):
            self._check_dataset(dataset, vocabulary)
        if hasattr(train_dataset, "column_names"):
            longest = max(map(len, train_dataset["input_ids"]))
            for network in filter(None, (model, teacher)):
                fast_attention(network, longest)
        pad = model.config.get_text_config().pad_token_id
        super().__init__(model, args, train_dataset=train_dataset,
                         data_collator=data_collator or LabelledCollator(0 if pad is None else pad), **others)
        if teacher is not None and teacher.device != self.args.device:
            teacher.to(self.args.device)
        self.remove_callback(PrinterCallback)  # the numbers are in trainer.state.log_history
        # the loss divides by the tokens of the whole accumulated batch, so the Trainer must count them and not divide again
        self.model_accepts_loss_kwargs = True
        self.args.remove_unused_columns = False  # the columns of a stored teacher are no arguments of the model
        # since the last log: sums of the steps' soft and hard terms, and the number of steps
        self._terms = torch.zeros(3, device=self.args.device)

    def _check_dataset(self, dataset, vocabulary: int) -> None:
        columns = getattr(dataset, "column_names", None)
        if columns is None:
            return
        if not len(dataset):
            raise ValueError("a dataset is empty; it needs at least one sample")
        if not {"input_ids", "labels"} <= set(columns):
            raise ValueError(f"a dataset has the columns {columns}; tokenize it first (training.tokenize_chat)")
        if self.teacher is None and self.plan["alpha"] > 0:
            if "teacher_tokens" not in columns:
                raise ValueError("teacher is None, and the dataset holds no stored teacher; give one of them "
                                 "(store_teacher_topk), or alpha=0 to train on labels only")
            stored = dataset[0]
            _check_vocabulary(vocabulary, stored["teacher_vocabulary"])
            if abs(stored["teacher_temperature"] - self.plan["temperature"]) > 1e-4:
                raise ValueError(f"temperature is {self.plan['temperature']}, but the teacher was stored at "
                                 f"{stored['teacher_temperature']:g}: store it again, or train at that temperature")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The distillation loss of one batch; a sum over its labelled tokens over `num_items_in_batch`."""
        hidden, targets = labelled(model, inputs)
        if not len(targets):
            raise ValueError("labels are -100 at every position that predicts a token: nothing to learn from this batch; "
                             "leave such samples out")
        student = Head.of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            loss, soft, hard = head_loss(hidden, student, targets, teacher=self._target(inputs), num_items=num_items_in_batch,
                                         **self.plan)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()}: student or teacher gave NaN or infinite logits; lower the learning "
                             "rate, or compute in bf16 or fp32 instead of fp16")
        if model.training:
            share = 1.0 if num_items_in_batch is None else len(targets) / float(num_items_in_batch)  # all batches of a step: 1
            self._terms += torch.stack((soft, hard, soft.new_tensor(share)))
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes of what must be a sum
        return (loss, None) if return_outputs else loss

    def _target(self, inputs):
        if not self.plan["alpha"]:
            return None
        if self.teacher is None:
            count, rows = int((shifted(inputs["labels"]) != IGNORED).sum()), len(inputs["teacher_tokens"])
            if count != rows:
                raise ValueError(f"a batch has {count} labelled positions, and a stored teacher for {rows}: the labels were "
                                 "changed after store_teacher_topk; store the teacher again")
            return stored_target(inputs["teacher_tokens"], inputs["teacher_logprobs"])
        with torch.inference_mode(), torch.autocast(inputs["input_ids"].device.type, enabled=False):
            hidden, _ = labelled(self.teacher, inputs)
        return live_target(Head.of(self.teacher), hidden, self.plan["temperature"])

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss alone: there are no logits to hand out."""
        inputs = self._prepare_inputs(inputs)
        with torch.inference_mode():
            loss = self.compute_loss(model, inputs)
            count = (shifted(inputs["labels"]) != IGNORED).sum()
            self._evaluated += torch.stack((loss * count, count))
        return loss, None, None

    def evaluation_loop(self, *args, metric_key_prefix="eval", **others):
        """As in any Trainer, but the loss is a mean over labelled tokens, not over batches."""
        self._evaluated = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **others)
        total, count = self.accelerator.reduce(self._evaluated).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / count
        return output

    def log(self, logs, *args, **others):
        if "loss" in logs:
            soft, hard, steps = self.accelerator.reduce(self._terms).tolist()
            logs = {**logs, "soft_loss": soft / steps, "hard_loss": hard / steps}
            self._terms.zero_()
        super().log(logs, *args, **others)
