"""The process behind `to_gguf`: python -m course_lib.gguf_convert FOLDER FILE f32|f16|bf16

It runs llama.cpp's converter (convert_hf_to_gguf), which the package auto-round carries as its folder `conversion`.
Importing auto-round itself would patch transformers and take several times as long, so its packages are entered
by their paths, and their `__init__` files are not run: the converter needs one small module of them.
"""
from __future__ import annotations

import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType

from .exporting import report_failure

# what a pre-tokenizer in tokenizer.json does → llama.cpp's name for it
_SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
}


def main(folder: str, target: str, precision: str) -> int:
    """Write `folder` as the GGUF file `target`, weights in `precision`; 1 after an error, which goes to stderr."""
    try:
        converter = _converter()
        _never_run_remote_code()
        types = sys.modules["gguf"].LlamaFileType
        kind = {"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "bf16": types.MOSTLY_BF16}[precision]
        base = converter.ModelBase
        settings = base.load_hparams(Path(folder), False)
        architecture = converter.get_model_architecture(settings, converter.ModelType.TEXT)
        try:
            model_class = converter.get_model_class(architecture)
        except NotImplementedError:
            raise ValueError(f"llama.cpp's converter knows no architecture {architecture!r}") from None
        _name_the_pre_tokenizer(model_class, Path(folder))
        _allow_no_merges()
        model_class(Path(folder), kind, Path(target), model_name=Path(folder).name).write()
    except Exception as error:  # every one is reported to the parent, which raises it again
        report_failure(error)
        return 1
    return 0


def _converter() -> ModuleType:
    """llama.cpp's package `conversion`, without the packages around it."""
    spec = importlib.util.find_spec("auto_round")
    root = Path(spec.origin).parent
    for name, folder in (("auto_round", root), ("auto_round.utils", root / "utils")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    sys.modules["mistral_common"] = None  # of gguf and the converter; takes seconds, for files without tokenizer.json
    sys.path.insert(0, str(root / "export" / "export_to_gguf"))
    logging.disable(logging.WARNING)
    return importlib.import_module("conversion")


def _never_run_remote_code() -> None:
    """The converter asks for remote code; a model that needs its own code is an error here."""
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained.__func__

    def from_pretrained(cls, *args, **options):
        return original(cls, *args, **{**options, "trust_remote_code": False})

    AutoTokenizer.from_pretrained = classmethod(from_pretrained)


def _name_the_pre_tokenizer(model_class: type, folder: Path) -> None:
    """Look into tokenizer.json where the converter does not know the tokenizer, such as one trained anew.

    The converter recognises a tokenizer by the hash of one encoded text, which any other vocabulary changes.
    """
    original = model_class.get_vocab_base_pre

    def get_vocab_base_pre(self, tokenizer) -> str:
        try:
            return original(self, tokenizer)
        except NotImplementedError:
            found = _pre_tokenizer(folder)
            if found is None:
                raise ValueError("llama.cpp's converter does not know how this tokenizer splits a text, so that the model "
                                 "would read other tokens there") from None
            return found

    model_class.get_vocab_base_pre = get_vocab_base_pre


def _allow_no_merges() -> None:
    """A tokenizer of single bytes has no merges, and llama.cpp refuses a file without: one that never applies is added."""
    vocabulary = sys.modules["gguf"].SpecialVocab
    original = vocabulary.add_to_gguf

    def add_to_gguf(self, *args, **options) -> None:
        if self.load_merges and not self.merges:
            self.merges = ["<none> <none>"]  # no symbol of a text is that long to begin with
        original(self, *args, **options)

    vocabulary.add_to_gguf = add_to_gguf


def _pre_tokenizer(folder: Path) -> str | None:
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8")).get("pre_tokenizer") if path.is_file() else None
    parts = (spec or {}).get("pretokenizers") or [spec or {}]
    plain = all(part.get("use_regex", True) and part.get("individual_digits", True) for part in parts)
    return _SPLITS.get(tuple(part.get("type") for part in parts)) if plain else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
