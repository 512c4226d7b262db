"""Knowledge distillation: a student learns a teacher's distribution over the next token.

L = α · τ² · D(teacher at τ ‖ student at τ) + (1 - α) · CE(labels), a mean over the labelled tokens. α weighs
the soft term; some papers put α on the hard term. τ² keeps the soft gradient's size when τ grows (Hinton et
al. 2015, arXiv 1503.02531, section 2). D is the forward KL(teacher ‖ student) by default; reverse KL and
Jensen-Shannon follow Agarwal et al. 2023 (arXiv 2306.13649, section 3). Built by hand in lesson 05.

`SupervisedDistillationTrainer` trains on given texts. TRL's own `DistillationTrainer` is on-policy: it trains
on texts that the student writes.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PrinterCallback, Trainer

from ..models.lm_head import DIVERGENCES, IGNORED, Head, head_loss, labelled, shifted
from ..runtime import check_choice
from .device import fast_attention, fast_dtype
from .samples import LabelledCollator, check_tokenized
from .teacher_store import LiveTarget, StoredTarget, check_temperature

_NO_LABELS = ("labels are -100 at every position that predicts a token: nothing to learn from this batch; "
              "leave such samples out")
_REMEDY = "lower the learning rate, or compute in bf16 or fp32 instead of fp16"


def distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, *,
    temperature: float = 2.0, alpha: float = 0.5, divergence: str = "forward_kl",
) -> torch.Tensor:
    """The distillation loss of full logits, a mean over the labelled tokens, in nats per token.

    It shifts the labels itself. The result is a scalar in fp32 (fp64 for fp64 logits).

    Args:
        student_logits, teacher_logits: (B, T, V); position t predicts token t + 1.
        labels: (B, T), -100 where nothing is learned; both terms leave those positions out.
        temperature: τ > 0, on both distributions of the soft term.
        alpha: weight of the soft term, 0 to 1.
        divergence: "forward_kl" KL(teacher ‖ student), "reverse_kl" KL(student ‖ teacher) or "jsd".

    Raises:
        ValueError: settings out of range, shapes that don't match, no labels, or logits that are not finite.
    """
    _check_settings(temperature, alpha, divergence)
    _check_logits(student_logits, teacher_logits, labels)
    targets = shifted(labels)
    keep = targets != IGNORED
    if not keep.any():
        raise ValueError(_NO_LABELS)
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    student, teacher = (logits[keep].to(wide) for logits in (student_logits, teacher_logits))
    hard = torch.nn.functional.cross_entropy(student, targets[keep])
    log_q, log_t = ((logits / temperature).log_softmax(-1) for logits in (student, teacher))
    soft = divergence_of(log_t, log_q, divergence).mean()
    loss = alpha * temperature**2 * soft + (1 - alpha) * hard
    if not loss.isfinite():
        culprit = "teacher_logits" if student.isfinite().all() else "student_logits"
        raise ValueError(f"{culprit} hold NaN or infinite values; {_REMEDY}")
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
    check_temperature(temperature)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 (labels only) to 1 (teacher only)")


def _check_logits(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> None:
    _check_vocabulary(student.shape[-1], teacher.shape[-1])
    if student.shape != teacher.shape or student.shape[:-1] != labels.shape:
        raise ValueError(f"student_logits {tuple(student.shape)}, teacher_logits {tuple(teacher.shape)} and "
                         f"labels {tuple(labels.shape)} don't fit; they must be (B, T, V) twice, and (B, T)")


def _check_vocabulary(student: int, teacher: int) -> None:
    if student != teacher:
        raise ValueError(f"the teacher predicts {teacher:,} tokens and the student {student:,}: logits can "
                         "only be compared over one vocabulary. Take models with the same tokenizer; where "
                         "only padding rows differ (Qwen2.5-0.5B against 7B), call resize_token_embeddings "
                         "on one of them; otherwise distil responses (respond_and_collect)")


@dataclass(frozen=True)
class Closeness:
    """How close a student is to its teacher on held-out text.

    Attributes:
        kl: forward KL(teacher ‖ student) at temperature 1, nats per labelled token.
        loss: the student's cross-entropy on the text itself, nats per labelled token.
        agreement: share of positions at which both have the same most likely token.
    """

    kl: float
    loss: float
    agreement: float


@torch.inference_mode()
def closeness(student, teacher, samples, batch_size: int = 8) -> Closeness:
    """Compare two models on tokenized samples (input_ids, labels): means over all labelled tokens.

    Both run in evaluation mode and in `cl.training.fast_dtype`; logits are compared in fp32.
    """
    models = (student, teacher)
    heads = [Head.of(model) for model in models]
    modes = [model.training for model in models]
    device = student.device.type
    dtype = fast_dtype(device)
    sums = torch.zeros(3, dtype=torch.float64)
    count = 0
    for model in models:
        model.eval()
    for start in range(0, len(samples), batch_size):
        chosen = samples.select(range(start, min(start + batch_size, len(samples))))
        batch = {name: value.to(student.device) for name, value in LabelledCollator()(list(chosen)).items()}
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            (states, targets), (teacher_states, _) = (labelled(model, batch) for model in models)
        for rows in torch.arange(len(targets)).split(128):
            log_q, log_t = (head.logits(hidden[rows]).log_softmax(-1)
                            for head, hidden in zip(heads, (states, teacher_states), strict=True))
            sums += torch.tensor([divergence_of(log_t, log_q, "forward_kl").sum(),
                                  -log_q.gather(1, targets[rows, None]).sum(),
                                  (log_q.argmax(-1) == log_t.argmax(-1)).sum()], dtype=torch.float64)
        count += len(targets)
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    return Closeness(*(sums / count).tolist())


class SupervisedDistillationTrainer(Trainer):
    """A Trainer for distillation; its loss equals `distillation_loss`, without full logits.

    Both LM heads run on labelled tokens only, block by block (`models/lm_head.py`). A teacher in memory runs
    in inference mode and in its own precision. LoRA, checkpoints, `accelerate launch` and gradient
    accumulation (each labelled token weighs the same) work as in any `transformers.Trainer`. It logs
    `soft_loss` (without τ²) and `hard_loss` beside the loss.

    Args:
        model: the student, a causal language model, with or without adapters.
        args: `cl.training.training_arguments(...)` or any TrainingArguments.
        teacher: has the student's vocabulary; None for data from `cl.training.store_teacher_topk`.
        train_dataset, eval_dataset: from `cl.training.tokenize_chat` or `cl.training.tokenize_texts`.
        temperature, alpha, divergence: as in `distillation_loss`.

    Raises:
        ValueError: unfit settings, vocabularies or data, a batch without labels, or a loss that is not
            finite.
    """

    def __init__(self, model, args=None, *, teacher=None, temperature=2.0, alpha=0.5, divergence="forward_kl",
                 train_dataset=None, data_collator=None, **others) -> None:
        _check_settings(temperature, alpha, divergence)
        self.teacher = teacher
        self.plan = {"temperature": temperature, "alpha": alpha, "divergence": divergence}
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
        super().__init__(model, args, train_dataset=train_dataset,
                         data_collator=data_collator or LabelledCollator(), **others)
        if teacher is not None and teacher.device != self.args.device:
            teacher.to(self.args.device)
        self.remove_callback(PrinterCallback)  # the numbers are in trainer.state.log_history
        # the loss is divided by the tokens of the whole accumulated batch: the Trainer must count them, and
        # must not divide again
        self.model_accepts_loss_kwargs = True
        self.args.remove_unused_columns = False  # forward() doesn't name a stored teacher's columns
        # since the last log: sums of the steps' soft and hard terms, and the number of steps
        self._terms = torch.zeros(3, device=self.args.device)

    def _check_dataset(self, dataset, vocabulary: int) -> None:
        if not hasattr(dataset, "column_names"):
            return
        if not len(dataset):
            raise ValueError("a dataset is empty; it needs at least one sample")
        check_tokenized(dataset)
        if self.teacher is None and self.plan["alpha"] > 0:
            if "teacher_tokens" not in dataset.column_names:
                raise ValueError("teacher is None, and the dataset holds no stored teacher; give one of them "
                                 "(store_teacher_topk), or alpha=0 to train on labels only")
            stored = dataset[0]
            _check_vocabulary(vocabulary, stored["teacher_vocabulary"])
            if abs(stored["teacher_temperature"] - self.plan["temperature"]) > 1e-4:
                raise ValueError(
                    f"temperature is {self.plan['temperature']}, but the teacher was stored at "
                    f"{stored['teacher_temperature']:g}: store it again, or train at that temperature")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch: a sum over its labelled tokens, divided by `num_items_in_batch`."""
        hidden, targets = labelled(model, inputs)
        if not len(targets):
            raise ValueError(_NO_LABELS)
        student = Head.of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            loss, soft, hard = head_loss(hidden, student, targets, num_items=num_items_in_batch,
                                         teacher=self._target(inputs, len(targets)), **self.plan)
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()}: student or teacher gave NaN or infinite logits; "
                             + _REMEDY)
        if model.training:
            # the shares of all batches of a step add up to 1
            share = 1.0 if num_items_in_batch is None else len(targets) / float(num_items_in_batch)
            self._terms += torch.stack((soft, hard, soft.new_tensor(share)))
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes a mean of what must be a sum
        return (loss, None) if return_outputs else loss

    def _target(self, inputs, count: int):
        if not self.plan["alpha"]:
            return None
        if self.teacher is None:
            stored = len(inputs["teacher_tokens"])
            if count != stored:
                raise ValueError(f"a batch has {count} labelled positions and a stored teacher for {stored}; "
                                 "labels were changed after store_teacher_topk: store the teacher again")
            return StoredTarget(inputs["teacher_tokens"], inputs["teacher_logprobs"])
        with torch.inference_mode(), torch.autocast(inputs["input_ids"].device.type, enabled=False):
            hidden, _ = labelled(self.teacher, inputs)
        return LiveTarget(Head.of(self.teacher), hidden, self.plan["temperature"])

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss alone, because there are no full logits."""
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
