"""Export a model to ExecuTorch, PyTorch's runtime for phones and microcontrollers, and run the file.

`torch.export` records the model as a graph from one token to logits, with a key/value cache of fixed size.
XNNPACK's CPU kernels (ARM, x86) run the operators that they support; portable kernels run the others. The
`.pte` file needs no Python on the device. The package executorch runs the same file from Python.

Sources: https://docs.pytorch.org/executorch/stable/using-executorch-export.html;
https://huggingface.co/docs/transformers/main_classes/executorch.
"""
from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading import refuse_quantized
from ..runtime import need_package, replacing, silenced
from .runners import Answer, Prompt, Runner, read_prompt, timed_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def to_executorch(model: PreTrainedModel, path: str | Path, *, max_length: int = 256) -> Path:
    """Write a model as a `.pte` file in fp32 for XNNPACK and return its path (the default model: minutes).

    Args:
        max_length: tokens of prompt and answer together; fixes the size of the cache in the file.

    Raises:
        ModuleNotFoundError: executorch is not installed.
        ValueError: a quantized model, an unmerged adapter, or max_length beyond the model's context.
        OSError: the disk is full; a file that was at `path` is unchanged.
    """
    need_package("executorch", "1.5")
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    refuse_quantized(model, "would be rounded a second time")
    if hasattr(model, "peft_config"):
        raise ValueError("the model has an adapter that is not merged; merge it first: cl.merge(model)")
    context = model.config.get_text_config().max_position_embeddings
    if not 1 < max_length <= context:
        raise ValueError(f"max_length is {max_length}; it must be from 2 to the model's context, {context}")
    model = copy.deepcopy(model).float().eval()
    model.generation_config.update(use_cache=True, cache_implementation="static")
    with replacing(path) as target, _quiet(), torch.no_grad():
        module = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=max_length)
        position = torch.zeros(1, dtype=torch.long)
        program = module.export(input_ids=position[None], cache_position=position)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        with open(target, "wb") as file:
            lowered.write_to_file(file)
    return Path(path)


class ExecutorchModel(Runner):
    """A `.pte` file in memory, run by ExecuTorch; the file holds no tokenizer, so pass the model's.

    Raises:
        ModuleNotFoundError: executorch is not installed.
        FileNotFoundError, OSError: the file does not exist, or is damaged.
    """

    def __init__(self, path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        need_package("executorch", "1.5")
        from executorch.runtime import Runtime, Verification

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        try:
            with silenced():  # XNNPACK looks for an ARM processor, and reports that there is none
                whole = Verification.InternalConsistency
                self._program = Runtime.get().load_program(path, verification=whole)
                self._forward = self._program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise OSError(f"{str(path)!r} is no ExecuTorch program, or it is damaged: {error}") from error
        self._tokenizer = tokenizer

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """See `Runner.generate`; the prompt is also read one token at a time."""
        messages, ids = read_prompt(prompt, max_new_tokens)
        if ids is None:
            template = self._tokenizer.apply_chat_template
            ids = list(template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        return timed_answer(self._stream(ids), decode, len(ids), max_new_tokens=max_new_tokens,
                            ends=(self._tokenizer.eos_token_id,) if stop else ())

    def _stream(self, ids: list[int]) -> Iterator[int]:
        import torch

        prompt = iter(ids)
        token = next(prompt)
        for position in count():
            logits = self._forward.execute((torch.tensor([[token]]), torch.tensor([position])))[0]
            token = next(prompt, None)
            if token is None:
                token = int(logits[0, -1].argmax())
                yield token

    def close(self) -> None:
        self._forward = None
        self._program = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the reports of torch.export and ExecuTorch on their passes."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
