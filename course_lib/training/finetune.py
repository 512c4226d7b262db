"""Fine-tuning on conversations: full, LoRA or QLoRA, with TRL's SFTTrainer and PEFT.

Lesson 06 measures what makes a step fast: only the answer's tokens reach the LM head (`models/lm_head.py`);
samples of similar length share a batch; activations are recomputed only if they don't fit into memory;
adapters multiply in the base's precision, though their weights are fp32; attention kernel and precision suit
the device (`device.py`).
Sources: LoRA, Hu et al. 2021, arXiv 2106.09685; QLoRA, Dettmers et al. 2023, arXiv 2305.14314;
https://huggingface.co/docs/trl/sft_trainer, https://huggingface.co/docs/peft.
"""
from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..inference.perplexity import answer_loss
from ..loading import refuse_quantized
from ..models import catalog, memory
from ..models.lm_head import Head, head_loss, labelled
from ..runtime import check_choice, profile, silenced, write_json
from .device import defaults, fast_attention, unpack_4bit
from .samples import LabelledCollator, tokenize_chat

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BASE_FILE = "base_model.json"  # beside a saved adapter: which base it belongs to
LEARNING_RATES = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4}


@dataclass(frozen=True)
class FinetuneResult:
    """The result of `finetune`.

    Attributes:
        model: the trained model in evaluation mode; with LoRA a PeftModel around the given base.
        losses: training loss of each step, a mean over the step's answer tokens.
        eval_loss: (before, after) on eval_dataset, a mean over all its answer tokens; None without one.
        seconds: time of training alone.
        folder: where the adapter (or the full model) was saved as safetensors; None without output_dir.
    """

    model: PreTrainedModel | PeftModel = field(repr=False)
    losses: list[float] = field(repr=False)
    eval_loss: tuple[float, float] | None
    seconds: float
    folder: Path | None


class AnswerTrainer(SFTTrainer):
    """TRL's SFTTrainer, with the LM head on labelled tokens only."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The labelled tokens' cross-entropy: their sum / `num_items_in_batch` (default: their number)."""
        # on a GPU, TRL does this itself in Triton; on other devices (1.16) it scores every position
        if inputs["input_ids"].device.type == "cuda":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        hidden, targets = labelled(model, inputs)
        head = Head.of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            loss, _, _ = head_loss(hidden, head, targets, num_items=num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss


class _Report(TrainerCallback):
    """Passes the loss of each step to a function, before the step's checkpoint is written."""

    def __init__(self, on_step: Callable[[int, float], None]) -> None:
        self._on_step = on_step

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self._on_step(state.global_step, logs["loss"])


def finetune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, *, method: str = "lora",
    output_dir: str | Path | None = None, eval_dataset: Dataset | None = None, rank: int = 16,
    alpha: float | None = None, target_modules: str | list[str] = "all-linear", epochs: float = 1.0,
    learning_rate: float | None = None, batch_size: int | None = None, max_length: int = 1024,
    on_step: Callable[[int, float], None] | None = None, **settings: object,
) -> FinetuneResult:
    """Train a chat model on conversations, with the loss on the answers only.

    Args:
        model: from `cl.load`; for "qlora" in nf4, fp4 or int8.
        dataset: columns question and answer, prompt and completion, or messages.
        method: "lora" and "qlora" train adapters beside frozen weights, "full" trains every weight.
        output_dir: for the result and for checkpoints (each epoch, or `save_strategy="steps", save_steps=…`).
            A call with the same folder resumes an interrupted run from its last checkpoint.
        rank, alpha: of the adapters; ΔW = alpha / rank · B·A; alpha is 2 · rank by default.
        target_modules: names of the layers that get an adapter, or "all-linear": all but the LM head.
        learning_rate, batch_size: by default that of the method and that of the profile.
        max_length: of a sample in tokens; a longer sample is an error.
        on_step: called after each step with its number (from 1) and loss; an exception in it ends the run.
        settings: other arguments of SFTConfig, such as `max_steps=10` or `gradient_accumulation_steps=4`.

    Raises:
        ValueError: method and model don't fit, no samples, one too long, an unknown layer, or a size below 1.
    """
    _check_method(model, method)
    size = profile().batch_size if batch_size is None else batch_size
    _check_positive(rank=rank, batch_size=size)
    context = min(max_length, model.config.get_text_config().max_position_embeddings)
    samples = tokenize_chat(dataset, tokenizer, context)
    held_out = None if eval_dataset is None else tokenize_chat(eval_dataset, tokenizer, context)
    longest = max(map(len, samples["input_ids"]))
    fast_attention(model, longest)
    folder = None if output_dir is None else Path(output_dir)
    plan = {
        **defaults(model), "per_device_train_batch_size": size, "num_train_epochs": epochs, "seed": 0,
        "learning_rate": LEARNING_RATES[method] if learning_rate is None else learning_rate,
        "train_sampling_strategy": "group_by_length", "save_strategy": "epoch" if folder else "no",
        "activation_checkpointing": _must_recompute(model, method, rank, size, longest),
        "dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_length": None,
        **settings,
    }
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as work:
        arguments = SFTConfig(str(work), **plan)  # before the model is touched: a wrong setting is an error
        before = None if held_out is None else answer_loss(model, held_out)
        if method != "full":
            torch.manual_seed(arguments.seed)  # for A, which starts random; B starts at zero
            model = _with_adapters(model, rank, 2 * rank if alpha is None else alpha, target_modules)
        trainer = AnswerTrainer(
            model, arguments, train_dataset=samples, processing_class=tokenizer,
            data_collator=LabelledCollator(), callbacks=[_Report(on_step)] if on_step else None)
        seconds = _train(trainer)
    if folder:
        _save(trainer, folder)
    model.eval()
    eval_loss = None if held_out is None else (before, answer_loss(model, held_out))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return FinetuneResult(model, losses, eval_loss, seconds, folder)


def lora_parameters(
    model_id: str | PreTrainedConfig, rank: int = 16, target_modules: str | list[str] = "all-linear",
) -> int:
    """Count the values that LoRA would train, Σ r · (in + out), as PEFT does, without loading weights.

    Raises:
        LookupError: unknown model id.
        ValueError: rank is below 1, or a name matches no layer (Phi-3 has only a qkv_proj).
    """
    _check_positive(rank=rank)
    if target_modules == "all-linear":
        return memory.adapter_parameters(model_id, rank)
    skeleton = catalog.skeleton(model_id)
    names = _targets(target_modules, skeleton)
    return sum(rank * (layer.in_features + layer.out_features)
               for name, layer in catalog.linear_layers(skeleton).items() if name.split(".")[-1] in names)


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved adapter on its base model, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter was trained on another base, or does not fit it.
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} holds no adapter (no adapter_config.json)")
    if (folder / BASE_FILE).is_file():  # adapters from elsewhere have none
        trained_on = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        layers = trained_on["layers"]
        if trained_on["embedding"] != _fingerprint(model) or layers != model.config.num_hidden_layers:
            raise ValueError(f"the adapter in {str(folder)!r} was trained on another model "
                             f"({trained_on['name']}, {layers} layers); load that one")
    try:
        with silenced():  # PEFT imports gptqmodel where that is installed, which prints a greeting
            return PeftModel.from_pretrained(model, folder).eval()
    except (RuntimeError, ValueError) as error:  # shapes or names of layers that don't fit
        reason = str(error).splitlines()[0]
        raise ValueError(f"the adapter in {str(folder)!r} does not fit this model: {reason}") from error


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter added to its weights, W + alpha / rank · B·A; it runs at the base's speed.

    Raises:
        ValueError: model has no adapter, or its base is quantized.
    """
    if not hasattr(model, "merge_and_unload"):
        raise ValueError(f"model is a {type(model).__name__} without an adapter; give what finetune or "
                         "load_adapter returned")
    refuse_quantized(
        model.get_base_model(), "the sum would be rounded to 4 or 8 bits again",
        "load the base in bf16 or fp32, put the adapter on it with load_adapter, and merge that")
    return model.merge_and_unload(safe_merge=True)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")


def _check_method(model: PreTrainedModel, method: str) -> None:
    check_choice("method", method, memory.METHODS)
    quantized = getattr(model, "quantization_method", None) is not None
    if quantized != (method == "qlora"):
        raise ValueError(f"method is {method!r}, but the model is {'' if quantized else 'not '}quantized; "
                         "'qlora' needs cl.load(name, 'nf4'), 'lora' and 'full' need fp32, bf16 or fp16")
    if hasattr(model, "peft_config"):
        raise ValueError("model has an adapter already; merge it first, or load the base anew")


def _targets(target_modules: str | list[str], model: PreTrainedModel) -> list[str]:
    """The names in target_modules; each must match a layer, because PEFT ignores some that don't."""
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    names = dict.fromkeys(name.split(".")[-1] for name in catalog.linear_layers(model))
    missing = [name for name in wanted if name not in names]
    if missing or not wanted:
        raise ValueError(f"target_modules names {missing or 'nothing'}, which matches no linear layer here; "
                         f"there are {', '.join(names)}")
    return wanted


def _with_adapters(
    model: PreTrainedModel, rank: int, alpha: float, target_modules: str | list[str],
) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    if target_modules != "all-linear":
        target_modules = _targets(target_modules, model)
    unpack_4bit(model)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_modules, task_type="CAUSAL_LM")
    with silenced():
        return get_peft_model(model, config)


def _must_recompute(model: PreTrainedModel, method: str, rank: int, batch: int, longest: int) -> bool:
    """Whether a step fits into memory only if the backward pass recomputes activations."""
    precision = "nf4" if method == "qlora" else "fp32" if model.dtype == torch.float32 else "bf16"
    need = memory.estimate_memory(model.config, precision, context=longest, batch=batch,
                                  training=memory.Training(method, rank))
    return need.peak - need.weights > 0.9 * memory.free_memory(str(model.device))


def _train(trainer: AnswerTrainer) -> float:
    """Train, from the last checkpoint if there is one; returns the seconds that it took."""
    from peft.helpers import disable_input_dtype_casting
    from transformers.trainer_utils import get_last_checkpoint

    for weight in trainer.model.parameters():
        if weight.requires_grad:  # TRL has adapters of a quantized base in bf16: small updates are lost
            weight.data = weight.data.float()
    folder = trainer.args.output_dir
    last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    # autocast brings fp32 adapters to the base's precision; PEFT would bring the activations to fp32 first
    low = hasattr(trainer.model, "peft_config") and (trainer.args.bf16 or trainer.args.fp16)
    trainer.remove_callback(PrinterCallback)  # the losses are in the result
    started = time.perf_counter()
    with disable_input_dtype_casting(trainer.model) if low else nullcontext():
        trainer.train(resume_from_checkpoint=last)
    return time.perf_counter() - started


def _save(trainer: AnswerTrainer, folder: Path) -> None:
    """Save the adapter or model and the identity of its base, without local paths."""
    base = getattr(trainer.model, "get_base_model", lambda: trainer.model)()
    trainer.save_model(str(folder))
    if not trainer.args.should_save:  # another process of `accelerate launch` does it
        return
    name = base.config.name_or_path
    name = Path(name).name if Path(name).exists() else name
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody should have to trust
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank form, with the path of the base
    config = folder / "adapter_config.json"
    if config.is_file():  # PEFT looks the base up while it saves, so its name is put right afterwards
        settings = json.loads(config.read_text(encoding="utf-8"))
        write_json(config, {**settings, "base_model_name_or_path": name}, indent=2)
    about = {"name": name, "layers": base.config.num_hidden_layers, "embedding": _fingerprint(base)}
    write_json(folder / BASE_FILE, about, indent=2)


def _fingerprint(model: PreTrainedModel) -> str:
    """A hash of some embeddings in bf16, which quantization and LoRA leave unchanged."""
    rows = model.get_input_embeddings().weight[::97].detach().to("cpu", torch.bfloat16).view(torch.int16)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()
