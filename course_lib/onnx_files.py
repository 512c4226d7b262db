"""To ONNX, and back to text through onnxruntime-genai: one graph that many runtimes and devices execute.

onnxruntime-genai's builder writes the decoder as a graph with key/value cache, in fp32 or with weights in 4 bits
(MatMulNBits, blocks of 32 values with one scale), beside the tokenizer and a `genai_config.json` that says how to run it.
The same folder runs on a phone and, through onnxruntime-web, in a browser. Shown in lesson 08.

Source: https://onnxruntime.ai/docs/genai/howto/build-model.html
"""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .exporting import as_folder, replacing, run_module
from .runners import Answer, Prompt, Runner, check_room, read_prompt
from .runtime import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRECISIONS = ("int4", "fp32")
_NEEDED = ("genai_config.json", "model.onnx", "tokenizer.json")


def to_onnx(
    model_or_folder: PreTrainedModel | str | Path, folder: str | Path, *, precision: str = "int4",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a model as an ONNX folder for the CPU; returns the folder.

    Args:
        model_or_folder: a folder that `save_pretrained` wrote, or a model in memory (with `tokenizer`; after LoRA the
            merged one).
        folder: where to; an earlier export there is replaced once the new one is whole.
        precision: "int4" (weights of linear layers and embedding; products in 8 bit, sums in fp32) or "fp32".

    Raises:
        ValueError: an unknown precision or architecture, an adapter that is not merged, a quantized model.
        FileNotFoundError: a source without config, safetensors or tokenizer. FileExistsError: `folder` holds other files.
        OSError: the disk is full. Whatever goes wrong, `folder` is as it was before.
    """
    check_choice("precision", precision, PRECISIONS)
    folder = Path(folder)
    with replacing(folder, mark=_NEEDED[0]) as made, as_folder(model_or_folder, tokenizer) as source:
        _check_architecture(source)
        run_module(["onnxruntime_genai.models.builder", "-i", source, "-o", made, "-p", precision, "-e", "cpu",
                    "-c", made.with_name("cache"), "--extra_options", "hf_token=false"], "the conversion to ONNX")
    return folder


def _check_architecture(source: Path) -> None:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if not config.get("architectures"):
        raise ValueError(f"config.json in {str(source)!r} names no architecture; save the model anew with save_pretrained")


class OnnxModel(Runner):
    """An ONNX folder in memory, run by onnxruntime-genai on the CPU.

    Args:
        folder: what `to_onnx` wrote.
        context: tokens of prompt and answer together; the cache is allocated for so many.

    Raises:
        FileNotFoundError: the folder, or a file in it, is missing. OSError: the files are damaged.
    """

    def __init__(self, folder: str | Path, *, context: int = 1024) -> None:
        import onnxruntime_genai as genai

        folder = Path(folder)
        missing = [name for name in _NEEDED if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{str(folder)!r} is no ONNX model of to_onnx: {', '.join(missing)} is missing")
        try:
            self._model = genai.Model(str(folder))
            self._tokenizer = genai.Tokenizer(self._model)
            config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        except (RuntimeError, ValueError) as error:
            raise OSError(f"cannot read the ONNX model in {str(folder)!r}: {str(error).splitlines()[0]}") from error
        ends = config["model"]["eos_token_id"]
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._context = min(context, config["model"]["context_length"])

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        """See `Runner.generate`."""
        import onnxruntime_genai as genai

        messages, ids = read_prompt(prompt, max_new_tokens)
        if ids is None:
            text = self._tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
            ids = self._tokenizer.encode(text).tolist()
        check_room(len(ids), max_new_tokens, self._context)
        settings = genai.GeneratorParams(self._model)
        settings.set_search_options(do_sample=False, num_beams=1, repetition_penalty=1.0, batch_size=1,
                                    max_length=len(ids) + max_new_tokens, min_length=0 if stop else len(ids) + max_new_tokens)
        generator, made, times = genai.Generator(self._model, settings), [], [time.perf_counter()]
        generator.append_tokens(ids)
        while not generator.is_done() and len(made) < max_new_tokens:
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))
            times.append(time.perf_counter())
        rate = (len(made) - 1) / (times[-1] - times[1]) if len(made) > 1 else 0.0
        tokens = made[:-1] if stop and made[-1] in self._ends else made
        return Answer(self._tokenizer.decode(tokens).strip(), tokens, len(ids), times[1] - times[0], rate)

    def close(self) -> None:
        """Free the model's memory."""
        self._model = self._tokenizer = None


def run_onnx(
    folder: str | Path, prompt_or_messages: Prompt, *, max_new_tokens: int = 64, context: int = 1024,
) -> str:
    """The greedy answer of an ONNX model, loaded for this call; `OnnxModel` keeps it for several."""
    with OnnxModel(folder, context=context) as model:
        return model.chat(prompt_or_messages, max_new_tokens=max_new_tokens)
