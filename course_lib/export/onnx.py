"""Export a model to ONNX, a graph format for many runtimes and devices, and run it. Shown in lesson 08.

onnxruntime-genai's builder writes the decoder with its key/value cache as a graph, in fp32 or with 4-bit
weights (MatMulNBits, blocks of 32 values with one scale), beside the tokenizer and a `genai_config.json`
that tells the runtime how to run it. The folder also runs on phones and, with onnxruntime-web, in browsers.

Source: https://onnxruntime.ai/docs/genai/howto/build-model.html
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import check_choice, replacing
from .files import as_folder, run_module
from .runners import Answer, Prompt, Runner, check_room, read_prompt, timed_answer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRECISIONS = ("int4", "fp32")
_NEEDED = ("genai_config.json", "model.onnx", "tokenizer.json")


def to_onnx(
    model_or_folder: PreTrainedModel | str | Path, folder: str | Path, *, precision: str = "int4",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a model as an ONNX folder for the CPU and return the folder.

    Args:
        model_or_folder: a folder that `save_pretrained` wrote, or a model in memory (with `tokenizer`; merge
            an adapter first).
        folder: the output; an earlier export in it is replaced once the new one is complete.
        precision: "int4" (linear layers and embedding; products in 8 bit, sums in fp32) or "fp32".

    Raises:
        ValueError: an unknown precision or architecture, an unmerged adapter, or a quantized model.
        FileNotFoundError: a source without config, safetensors or tokenizer.
        FileExistsError: `folder` holds other files.
        OSError: the disk is full. After any error, `folder` is unchanged.
    """
    check_choice("precision", precision, PRECISIONS)
    folder = Path(folder)
    with replacing(folder, mark=_NEEDED[0]) as target, as_folder(model_or_folder, tokenizer) as source:
        if not json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures"):
            raise ValueError(f"config.json in {str(source)!r} names no architecture; save the model anew "
                             "with save_pretrained")
        options = ["-i", source, "-o", target, "-p", precision, "-e", "cpu", "-c", target.with_name("cache"),
                   "--extra_options", "hf_token=false"]
        run_module(["onnxruntime_genai.models.builder", *options], "the conversion to ONNX")
    return folder


class OnnxModel(Runner):
    """An ONNX folder in memory, run by onnxruntime-genai on the CPU.

    Args:
        folder: what `to_onnx` wrote.
        context: tokens of prompt and answer together, at most the model's own context.

    Raises:
        FileNotFoundError, OSError: a file is missing, or is damaged.
    """

    def __init__(self, folder: str | Path, *, context: int = 1024) -> None:
        import onnxruntime_genai as genai

        folder = Path(folder)
        missing = [name for name in _NEEDED if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{str(folder)!r} is no ONNX model of to_onnx: {', '.join(missing)} is "
                                    "missing")
        try:
            self._model = genai.Model(str(folder))
            self._tokenizer = genai.Tokenizer(self._model)
            config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise OSError(f"cannot read the ONNX model in {str(folder)!r}: {reason}") from error
        ends = config["model"]["eos_token_id"]
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._context = min(context, config["model"]["context_length"])

    def generate(self, prompt: Prompt, *, max_new_tokens: int = 64, stop: bool = True) -> Answer:
        messages, ids = read_prompt(prompt, max_new_tokens)
        if ids is None:
            text = self._tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
            ids = self._tokenizer.encode(text).tolist()
        check_room(len(ids), max_new_tokens, self._context)
        longest = len(ids) + max_new_tokens
        stream = self._stream(ids, longest, 0 if stop else longest)
        return timed_answer(stream, self._tokenizer.decode, len(ids), max_new_tokens=max_new_tokens,
                            ends=self._ends if stop else ())

    def _stream(self, ids: list[int], max_length: int, min_length: int) -> Iterator[int]:
        import onnxruntime_genai as genai

        settings = genai.GeneratorParams(self._model)
        settings.set_search_options(do_sample=False, num_beams=1, repetition_penalty=1.0, batch_size=1,
                                    max_length=max_length, min_length=min_length)
        generator = genai.Generator(self._model, settings)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def close(self) -> None:
        self._model = None
        self._tokenizer = None
