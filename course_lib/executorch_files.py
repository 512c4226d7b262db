"""To ExecuTorch, PyTorch's runtime for phones and microcontrollers: one `.pte` file, no Python where it runs.

`torch.export` records the model as a graph with a key/value cache of fixed size inside, one token in, logits out; the
partitioner hands what it can to XNNPACK, the CPU kernels for ARM and x86; the rest runs on portable kernels. The package
executorch brings the same runtime to Python, so that the file can be tried here before it goes to a device.

Sources: https://docs.pytorch.org/executorch/stable/using-executorch-export.html;
https://huggingface.co/docs/transformers/main_classes/executorch.
"""
from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .exporting import need_package, replacing
from .runners import Answer, Prompt, Runner, read_prompt
from .runtime import silenced

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def to_executorch(model: PreTrainedModel, path: str | Path, *, max_length: int = 256) -> Path:
    """Write a model as a `.pte` file in fp32 for XNNPACK; returns its path. The whole default model takes minutes.

    Args:
        max_length: tokens of prompt and answer together: the size of the cache, fixed in the file.

    Raises:
        ModuleNotFoundError: executorch is not installed. ValueError: a quantized model, or max_length beyond its context.
        OSError: the disk is full; `path` is as it was before.
    """
    need_package("executorch", "1.5")
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    if getattr(model, "quantization_method", None) or hasattr(model, "peft_config"):
        raise ValueError("the model is quantized or has an adapter; give it in fp32 or bf16, the adapter merged")
    context = model.config.get_text_config().max_position_embeddings
    if not 1 < max_length <= context:
        raise ValueError(f"max_length is {max_length}; it must be from 2 to the model's context, {context}")
    model = copy.deepcopy(model).float().eval()
    model.generation_config.update(use_cache=True, cache_implementation="static")
    with replacing(path) as made, _quiet(), torch.no_grad():
        module = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=max_length)
        one = torch.zeros(1, dtype=torch.long)
        program = module.export(input_ids=one[None], cache_position=one)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        with open(made, "wb") as file:
            lowered.write_to_file(file)
    return Path(path)


class ExecutorchModel(Runner):
    """A `.pte` file in memory, run by ExecuTorch's runtime; the tokenizer is not in the file, so it is given.

    Raises:
        ModuleNotFoundError: executorch is not installed. FileNotFoundError: no such file. OSError: a damaged one.
    """

    def __init__(self, path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        need_package("executorch", "1.5")
        from executorch.runtime import Runtime, Verification

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        try:
            with silenced():  # XNNPACK looks for an ARM processor, and reports that there is none
                self._program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
                self._forward = self._program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise OSError(f"{str(path)!r} is no ExecuTorch program, or it is damaged: {error}") from error
        self._tokenizer = tokenizer

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """See `Runner.generate`; the prompt, too, is read one token at a time."""
        messages, ids = read_prompt(prompt, max_new_tokens)
        if ids is None:
            ids = list(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
        made, times, ended = [], [time.perf_counter()], False
        for place, token in enumerate(ids[:-1]):
            self._step(token, place)
        pending = ids[-1]
        while len(made) < max_new_tokens and not ended:
            pending = self._step(pending, len(ids) - 1 + len(made))
            made.append(pending)
            times.append(time.perf_counter())
            ended = stop and pending == self._tokenizer.eos_token_id
        rate = (len(made) - 1) / (times[-1] - times[1]) if len(made) > 1 else 0.0
        tokens = made[:-1] if ended else made
        text = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Answer(text, tokens, len(ids), times[1] - times[0], rate)

    def _step(self, token: int, place: int) -> int:
        import torch

        logits = self._forward.execute((torch.tensor([[token]]), torch.tensor([place])))[0]
        return int(logits[0, -1].argmax())

    def close(self) -> None:
        """Free the model's memory."""
        self._program = self._forward = None


def run_executorch(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_new_tokens: int = 64,
) -> str:
    """The greedy answer of a `.pte` file, loaded for this call; `ExecutorchModel` keeps it for several."""
    with ExecutorchModel(path, tokenizer) as model:
        return model.chat(prompt, max_new_tokens=max_new_tokens)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export and ExecuTorch report on their passes."""
    import warnings

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
