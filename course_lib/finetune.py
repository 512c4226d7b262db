"""Fine-tuning on conversations: full, LoRA or QLoRA, over TRL's SFTTrainer and PEFT.

What makes a step fast here, all of it measured in lesson 06: only the answer's tokens reach the LM head (fused_loss),
samples of similar length share a batch and are padded to its longest, activations are kept while they fit instead of
being computed twice, adapters multiply in the base's precision while their weights stay in fp32, and the attention
kernel and the precision are those that are fast on this device (training).

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

from . import catalog, loading, memory
from .fused_loss import Head, head_loss, labelled
from .runtime import check_choice, profile, silenced, write_json
from .training import LabelledCollator, answer_loss, defaults, fast_attention, linear_layers, tokenize_chat, unpack_4bit

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BASE_FILE = "base_model.json"  # beside a saved adapter: which base it belongs to
LEARNING_RATES = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4}


@dataclass(frozen=True)
class FinetuneResult:
    """What a run leaves behind.

    Attributes:
        model: the trained model, in evaluation mode; with LoRA a PeftModel around the base that was given.
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
    """TRL's SFTTrainer with the LM head on labelled tokens only.

    On a GPU TRL does that itself, in Triton; on other devices (1.16) it scores every position.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy of the labelled tokens: their sum over `num_items_in_batch`, by default their mean."""
        if inputs["input_ids"].device.type == "cuda":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        hidden, targets = labelled(model, inputs)
        with self.accelerator.autocast():
            loss, _, _ = head_loss(hidden, Head.of(self.accelerator.unwrap_model(model)), targets, num_items=num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss


class _Report(TrainerCallback):
    """Hands the loss of each step to a function, before the step's checkpoint is written."""

    def __init__(self, on_step: Callable[[int, float], None]) -> None:
        self._on_step = on_step

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self._on_step(state.global_step, logs["loss"])


def finetune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, *, method: str = "lora",
    output_dir: str | Path | None = None, eval_dataset: Dataset | None = None, rank: int = 16, alpha: int | None = None,
    target_modules: str | list[str] = "all-linear", epochs: float = 1.0, max_steps: int = -1,
    learning_rate: float | None = None, batch_size: int | None = None, accumulation: int = 1, max_length: int = 1024,
    seed: int = 0, on_step: Callable[[int, float], None] | None = None, **settings: object,
) -> FinetuneResult:
    """Train a chat model on conversations, with the loss on the answers only.

    Args:
        model: as `cl.load` gives it; for "qlora" in nf4, fp4 or int8.
        dataset: columns question and answer, prompt and completion, or messages (`training.tokenize_chat`).
        method: "lora" and "qlora" train adapters beside frozen weights, "full" trains every weight.
        output_dir: where checkpoints (each epoch, or `save_steps=…`) and the result go. A run that was interrupted goes on
            from its last checkpoint when it is called again with the same folder.
        rank, alpha: of the adapters; ΔW = alpha / rank · B·A; alpha is 2 · rank by default.
        target_modules: names of the layers that get an adapter, or "all-linear": all but the LM head.
        batch_size, accumulation: samples of one forward pass (by default the profile's) and passes of one step.
        max_length: of a sample in tokens; a longer one is an error, not cut.
        on_step: called after each step with its number, from 1, and its loss, such as a `show.LossPlot`; what it raises
            ends the run.
        settings: anything else of SFTConfig, such as `activation_checkpointing=True`, `warmup_steps=10`.

    Raises:
        ValueError: a method that does not go with the model, an empty dataset, a sample that is too long,
            target_modules that match no layer.
    """
    _check_method(model, method, rank)
    samples = tokenize_chat(dataset, tokenizer, _context(model, max_length))
    held_out = None if eval_dataset is None else tokenize_chat(eval_dataset, tokenizer, _context(model, max_length))
    longest = max(map(len, samples["input_ids"]))
    size = batch_size or profile().batch_size
    fast_attention(model, longest)
    folder = Path(output_dir) if output_dir is not None else None
    plan = {
        **defaults(model), "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation,
        "num_train_epochs": epochs, "max_steps": max_steps, "learning_rate": learning_rate or LEARNING_RATES[method],
        "seed": seed, "train_sampling_strategy": "group_by_length", "save_strategy": "epoch" if folder else "no",
        "activation_checkpointing": _must_recompute(model, method, rank, size, longest),
        "dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_length": None, **settings,
    }
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        arguments = SFTConfig(str(place), **plan)  # before the model is touched: a wrong setting is an error
        before = None if held_out is None else answer_loss(model, held_out)
        if method == "qlora":
            unpack_4bit(model)
        if method != "full":
            model = _with_adapters(model, method, rank, alpha, target_modules, seed)
        trainer = AnswerTrainer(model, arguments, train_dataset=samples, processing_class=tokenizer,
                                data_collator=LabelledCollator(tokenizer.pad_token_id),
                                callbacks=[_Report(on_step)] if on_step else None)
        trainer.remove_callback(PrinterCallback)  # the losses are in the result
        started = time.perf_counter()
        _train(trainer, place)
        seconds = time.perf_counter() - started
    if folder:
        _save(trainer, folder)
    model.eval()
    after = None if held_out is None else answer_loss(model, held_out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return FinetuneResult(model, losses, None if after is None else (before, after), seconds, folder)


def lora_parameters(model_id: str | PreTrainedConfig, rank: int = 16, target_modules: str | list[str] = "all-linear") -> int:
    """Values that LoRA would train, Σ r · (in + out), counted before a weight is loaded; equals PEFT's count.

    Raises:
        LookupError: unknown model id. ValueError: a name in target_modules matches no layer (Phi-3 has no q_proj: its
            query, key and value are one qkv_proj).
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")
    if target_modules == "all-linear":
        return memory.adapter_parameters(model_id, rank)
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    linears = linear_layers(catalog.skeleton(model_id))
    _check_targets(wanted, linears)
    chosen = [layer for name, layer in linears.items() if name.split(".")[-1] in wanted]
    return sum(rank * (layer.in_features + layer.out_features) for layer in chosen)


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved adapter on its base model, in evaluation mode.

    Raises:
        FileNotFoundError: no adapter in that folder. ValueError: it was trained on another base.
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} holds no adapter (no adapter_config.json)")
    base = folder / BASE_FILE
    if base.is_file():  # adapters from elsewhere have none
        trained_on = json.loads(base.read_text(encoding="utf-8"))
        if (trained_on["embedding"], trained_on["layers"]) != (_fingerprint(model), model.config.num_hidden_layers):
            raise ValueError(f"the adapter in {str(folder)!r} was trained on another model ({trained_on['name']}, "
                             f"{trained_on['layers']} layers); load that one")
    try:
        with silenced():  # PEFT imports gptqmodel where that is installed, which prints a greeting
            return PeftModel.from_pretrained(model, folder).eval()
    except (RuntimeError, ValueError) as error:  # shapes or names of layers that don't fit
        reason = str(error).splitlines()[0]
        raise ValueError(f"the adapter in {str(folder)!r} does not fit this model: {reason}") from error


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the adapter added to its weights, W + alpha / rank · B·A: as fast as the base, and no adapter left.

    Raises:
        ValueError: no adapter, or a quantized base.
    """
    if not hasattr(model, "merge_and_unload"):
        raise ValueError(f"model is a {type(model).__name__} without an adapter; give what finetune or load_adapter returned")
    if getattr(model.get_base_model(), "quantization_method", None):
        raise ValueError("the base is quantized, and the sum would be rounded to 4 or 8 bits again; load the base in bf16 or "
                         "fp32, put the adapter on it with load_adapter, and merge that")
    return model.merge_and_unload(safe_merge=True)


def _check_method(model: PreTrainedModel, method: str, rank: int) -> None:
    check_choice("method", method, memory.METHODS)
    quantized = getattr(model, "quantization_method", None) is not None
    if quantized != (method == "qlora"):
        is_it = "quantized" if quantized else "not quantized"
        raise ValueError(f"method is {method!r}, but the model is {is_it}; 'qlora' needs cl.load(name, 'nf4'), "
                         "'lora' and 'full' need fp32, bf16 or fp16")
    if hasattr(model, "peft_config"):
        raise ValueError("model has an adapter already; merge it first, or load the base anew")
    if rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1")


def _context(model: PreTrainedModel, max_length: int) -> int:
    return min(max_length, model.config.get_text_config().max_position_embeddings)


def _check_targets(wanted: list[str], linears: dict[str, torch.nn.Linear]) -> None:
    names = dict.fromkeys(name.split(".")[-1] for name in linears)
    missing = [name for name in wanted if name not in names]
    if missing or not wanted:
        raise ValueError(f"target_modules names {missing or 'nothing'}, which matches no linear layer here; "
                         f"there are {', '.join(names)}")


def _with_adapters(model, method: str, rank: int, alpha: int | None, target_modules: str | list[str], seed: int) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    if target_modules != "all-linear":  # PEFT is silent where some names match and others don't
        target_modules = [target_modules] if isinstance(target_modules, str) else list(target_modules)
        _check_targets(target_modules, linear_layers(model))
    torch.manual_seed(seed)  # of A; B starts at zero
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, target_modules=target_modules, task_type="CAUSAL_LM")
    with silenced():
        return get_peft_model(model, config)


def _must_recompute(model, method: str, rank: int, batch: int, longest: int) -> bool:
    """Whether a step would not fit into memory unless activations are computed again in the backward pass."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    precision = "nf4" if method == "qlora" else "fp32" if base.dtype == torch.float32 else "bf16"
    need = memory.estimate(base.config, precision, context=longest, batch=batch, training=memory.Training(method, rank))
    return need.peak - need.weights > 0.9 * loading.free_memory(str(base.device))


def _train(trainer: AnswerTrainer, place: Path | str) -> None:
    from peft.helpers import disable_input_dtype_casting
    from transformers.trainer_utils import get_last_checkpoint

    for weight in trainer.model.parameters():
        if weight.requires_grad:  # TRL puts adapters of a quantized base in bf16, where small updates round to nothing
            weight.data = weight.data.float()
    last = get_last_checkpoint(str(place)) if Path(place).is_dir() else None
    # autocast brings fp32 adapters to the base's precision; PEFT would bring the activations to fp32 first
    low = hasattr(trainer.model, "peft_config") and (trainer.args.bf16 or trainer.args.fp16)
    casting = disable_input_dtype_casting(trainer.model) if low else nullcontext()
    with casting:
        trainer.train(resume_from_checkpoint=last)


def _save(trainer: AnswerTrainer, folder: Path) -> None:
    """The adapter or the model, and which base it belongs to; without the paths of this machine."""
    model = trainer.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trainer.save_model(str(folder))
    if not trainer.args.should_save:  # another process of `accelerate launch` does it
        return
    name = base.config.name_or_path
    name = Path(name).name if Path(name).exists() else name
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody should have to trust
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank form, with the path of the base
    settings = folder / "adapter_config.json"
    if settings.is_file():  # PEFT looks the base up while it saves, so its name is put right afterwards
        write_json(settings, {**json.loads(settings.read_text(encoding="utf-8")), "base_model_name_or_path": name}, indent=2)
    about = {"name": name, "layers": base.config.num_hidden_layers, "embedding": _fingerprint(base)}
    write_json(folder / BASE_FILE, about, indent=2)


def _fingerprint(model: PreTrainedModel) -> str:
    """A hash of some embeddings in bf16, which stay as they are under quantization and LoRA."""
    rows = model.get_input_embeddings().weight[::97].detach().to("cpu", torch.bfloat16).view(torch.int16)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()
