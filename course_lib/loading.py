"""Load a model in a given precision, and chat with it.

`load` adds checks to transformers' `from_pretrained`: whether the precision exists and, before any weight is
read, whether the memory suffices. If the Hub cannot be reached, one sentence says so. Remote code is never
run. Built by hand in lesson 02.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from . import offline_models
from .models.catalog import PRECISIONS, dtype_of
from .models.memory import check_memory
from .runtime import check_choice, profile, quiet, silenced

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = ("eager", "sdpa", "flash_attention_2")
QUANTIZED = ("int8", "nf4", "fp4")  # precisions that quantize while loading

# arguments of `generate` for greedy decoding: they override sampling and penalties of the model's own config;
# top_k has generate's default, because any other value would log a warning without sampling
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None,
          "typical_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def load(
    name: str | Path = offline_models.NAME, precision: str = "bf16", *, device: str | None = None,
    attn_implementation: str | None = None, double_quant: bool = True, force: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name: "smollm2-135m" (cached), a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", or a folder that
            `save_pretrained` or `cl.quantize` wrote.
        precision: "fp32", "fp16", "bf16", or with bitsandbytes "int8", "nf4", "fp4"
            (https://huggingface.co/docs/transformers/quantization/bitsandbytes).
        device: "cpu", "cuda", "cuda:1", …; by default the device of `cl.profile()`.
        attn_implementation: "eager", "sdpa" or "flash_attention_2"; transformers chooses by default.
        double_quant: for nf4 and fp4, quantize the scales too (0.37 bit less per weight, arXiv 2305.14314).
        force: load even if the memory does not seem to suffice.

    Raises:
        ValueError: unknown precision, device or attention, or a quantized folder would be quantized again.
        MemoryError: the estimate exceeds the free memory; the message says which precision would fit.
        ConnectionError, PermissionError, LookupError: the Hub is unreachable, the model gated or unknown.
        OSError: the files are damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .models import int4  # noqa: F401 - registers the format of `cl.quantize` with transformers

    check_choice("precision", precision, PRECISIONS)
    if attn_implementation is not None:
        check_choice("attn_implementation", attn_implementation, ATTENTION)
    device = _check_device(device)
    quiet()
    source = resolve(name)
    with _reading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    _check_unquantized(str(name), config, precision)
    if not force:
        check_memory(str(name), config, precision, device, double_quant=double_quant)
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if precision in QUANTIZED:  # even None would hide the quantization_config of a quantized folder
        options["quantization_config"] = _bitsandbytes(precision, double_quant)
    options |= _gguf(source)
    # transformers draws a progress bar for a GGUF file even if its bars are disabled
    silence = silenced() if "gguf_file" in options else nullcontext()
    with _reading(source), silence:
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype_of(precision), device_map=device, trust_remote_code=False,
            use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def resolve(name: str | Path) -> Path | str:
    """Return a local folder as a Path or a hub id as a string; raises LookupError if it is neither."""
    if name == offline_models.NAME:
        return offline_models.folder()
    if Path(name).is_dir():
        return Path(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return str(name)
    raise LookupError(f"name is {str(name)!r}: no folder here has that name, and a hub id looks like "
                      f"'owner/model'; the default model is {offline_models.NAME!r}")


def refuse_quantized(model: PreTrainedModel, reason: str, remedy: str = "load it in bf16 or fp32") -> None:
    """Raise a ValueError if the model's weights are packed in 8 or 4 bits.

    `reason` ends the sentence "the model is quantized (nf4), and …"; `remedy` says what to do instead.
    """
    method = getattr(model, "quantization_method", None)
    if method:
        method = getattr(method, "value", method)  # a member of transformers' enumeration, or a string
        raise ValueError(f"the model is quantized ({method}), and {reason}; {remedy}")


def check_plain_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise a ValueError unless a model has 16- or 32-bit weights, no adapter, and a tokenizer beside it."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):  # a PeftModel is not one either
        merge = hasattr(model, "peft_config")
        hint = "merge its adapter first: cl.merge(model)" if merge else "give a folder, or a model of cl.load"
        raise ValueError(f"model_or_folder is a {type(model).__name__}; {hint}")
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("the model has an adapter that is not merged; cl.merge(model) adds it to the "
                         "weights")
    refuse_quantized(model, "would be rounded a second time")
    if tokenizer is None:
        raise ValueError("tokenizer is missing: a model in memory has none, so pass tokenizer= as well")


def chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
    prompt_or_messages: str | list[dict[str, str]], *, system: str | None = None, max_new_tokens: int = 128,
    stream: bool = False, do_sample: bool = False, temperature: float | None = None,
    top_p: float | None = None, top_k: int | None = None,
) -> str:
    """Return the model's answer, without the prompt and special tokens.

    Decoding is greedy by default and ignores the model's own generation config, so the same prompt gives the
    same answer. For sampling, pass do_sample=True, and call `cl.set_seed` before to repeat a draw.

    Args:
        prompt_or_messages: the user's text, or messages [{"role": "user", "content": "…"}, …].
        system: a system prompt, put before the messages.
        stream: print the answer while it is generated.
        temperature, top_p, top_k: only with do_sample=True.

    Raises:
        ValueError: an empty prompt, a wrong role, or a sampling argument out of range or without do_sample.
    """
    import torch
    from transformers import TextStreamer

    messages = read_messages(prompt_or_messages, system)
    sampling = _sampling(do_sample, temperature, top_p, top_k)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                           return_dict=True).to(model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    with torch.inference_mode():
        output = model.generate(**inputs, **sampling, max_new_tokens=max_new_tokens, streamer=streamer,
                                pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()


def read_messages(
    prompt_or_messages: str | list[dict[str, str]], system: str | None = None,
) -> list[dict[str, str]]:
    """Return the messages with the system prompt first; raises ValueError if they are empty or invalid."""
    if isinstance(prompt_or_messages, str):
        messages = [{"role": "user", "content": prompt_or_messages}] if prompt_or_messages.strip() else []
    else:
        messages = list(prompt_or_messages)
    if not messages:
        raise ValueError("prompt_or_messages is empty; ask something")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"prompt_or_messages holds {message!r}; a message has 'role' and 'content'")
        check_choice("role", message["role"], ("system", "user", "assistant"))
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise ValueError("system was given, but the messages already start with one; keep one of them")
    return [{"role": "system", "content": system}, *messages]


def _sampling(do_sample: bool, temperature: float | None, top_p: float | None, top_k: int | None) -> dict:
    """Return arguments of `generate` that override the model's own generation config."""
    named = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {key: value for key, value in named.items() if value is not None}
    if given and not do_sample:
        raise ValueError(f"{', '.join(given)} given without do_sample=True: greedy decoding would ignore it; "
                         "add do_sample=True or leave it out")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (greedy: no do_sample)")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 (no limit) or more")
    return {**GREEDY, "do_sample": True, "top_k": 0, **given} if do_sample else GREEDY


def _gguf(source: Path | str) -> dict[str, object]:
    """Return options to load a folder whose weights are in a GGUF file, dequantized to 16 bit."""
    files = list(source.glob("*.gguf")) if isinstance(source, Path) else []
    if len(files) != 1 or any(source.glob("*.safetensors")):
        return {}
    from transformers import GgufConfig

    from .models.gguf_header import read_gguf_header

    read_gguf_header(files[0])  # says what is wrong with a damaged file
    return {"gguf_file": files[0].name, "quantization_config": GgufConfig(dequantize=True)}


def _bitsandbytes(precision: str, double_quant: bool):
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=precision, bnb_4bit_compute_dtype=dtype_of(precision),
        bnb_4bit_use_double_quant=double_quant)


@contextmanager
def _reading(source: Path | str) -> Iterator[None]:
    """Turn every error while a model is read into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(source, Path):
            raise OSError(f"cannot read a model from the folder {str(source)!r}: {error}") from error
        raise _hub_error(source, error) from error


def _hub_error(name: str, error: Exception) -> Exception:
    """Return an error that a learner can act on, from the causes that the Hub's client raised."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__

    def caused_by(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if caused_by(errors.GatedRepoError):
        return PermissionError(f"{name} is gated: accept its licence on huggingface.co/{name}, then log in "
                               "with a token (hf auth login, or the environment variable HF_TOKEN)")
    if caused_by(errors.RepositoryNotFoundError):
        return LookupError(f"the hub has no model {name!r}, or it is private: check the spelling, or log in "
                           "(hf auth login)")
    if caused_by(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        return ConnectionError(f"the model hub cannot be reached, and {name} is not in its local cache: "
                               f"check the network, or use the default model, load({offline_models.NAME!r})")
    return OSError(f"cannot load {name}: {error}")


def _check_device(device: str | None) -> str:
    import torch

    device = device or profile().device
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device is {device!r}; torch knows 'cpu', 'cuda', 'cuda:1', …") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no CUDA GPU here; use 'cpu'")
    return device


def _check_unquantized(name: str, config: PreTrainedConfig, precision: str) -> None:
    """Raise a ValueError if a model that is already quantized would be quantized again."""
    stored = getattr(config, "quantization_config", None)
    # a quantized folder keeps its format; precision is then the dtype of its other parameters
    if stored and precision in QUANTIZED:
        named = isinstance(stored, dict)
        method = stored.get("quant_method", "an unnamed method") if named else stored.quant_method
        raise ValueError(f"precision is {precision!r}, but {name} is quantized already ({method}); load it "
                         "with 'bf16', the type of what is not quantized")
