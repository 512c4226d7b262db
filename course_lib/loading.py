"""Load a model in a precision that fits, and talk to it.

`load` is `from_pretrained` with the checks that save an evening: the precision exists, the memory suffices
before a single weight is read, and a hub that cannot be reached says so in one sentence. Remote code is never run.
Built by hand in lesson 02.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from . import default_model
from .catalog import PRECISIONS
from .runtime import check_choice, profile, quiet, silenced

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = ("eager", "sdpa", "flash_attention_2")
QUANTIZED = ("int8", "nf4", "fp4")  # precisions that quantize while loading


def load(
    name: str | Path = default_model.NAME, precision: str = "bf16", *, device: str | None = None, attn: str | None = None,
    double_quant: bool = True, force: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Args:
        name: "smollm2-135m" (the default, from the cache), a hub id such as "Qwen/Qwen2.5-0.5B-Instruct", or a
            folder that `save_pretrained` or `quantize` wrote, of a quantized model as well.
        precision: "fp32", "fp16", "bf16", or through bitsandbytes "int8", "nf4", "fp4"
            (https://huggingface.co/docs/transformers/quantization/bitsandbytes).
        device: "cpu", "cuda", "cuda:1", …; the profile's by default.
        attn: "eager", "sdpa" or "flash_attention_2"; by default what transformers chooses for the model.
        double_quant: for nf4 and fp4, quantize the scales as well (QLoRA, section 3: 0.37 bit a weight less).
        force: load even if the memory does not seem to suffice.

    Raises:
        ValueError: unknown precision, device or attention.
        MemoryError: the estimate exceeds the free memory; says which precision would fit.
        ConnectionError, PermissionError, LookupError: the hub is out of reach, the model is gated, there is no such model.
        OSError: the files are damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from . import int4  # noqa: F401 - teaches transformers the format of `quantize`'s 4-bit layers

    check_choice("precision", precision, PRECISIONS)
    if attn is not None:
        check_choice("attn", attn, ATTENTION)
    device = _check_device(device)
    quiet()
    source = resolve(name)
    with _reading(source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    _check_unquantized(str(name), config, precision)
    if not force:
        _check_memory(str(name), config, precision, device, double_quant)
    options = {"attn_implementation": attn} if attn else {}
    if precision in QUANTIZED:  # even None would hide the quantization_config of a quantized folder
        options["quantization_config"] = _bitsandbytes(precision, double_quant)
    options |= _gguf(source)
    # transformers draws a bar for the tensors of a GGUF file, whatever its settings say
    silence = silenced() if "gguf_file" in options else nullcontext()
    with _reading(source), silence:
        model = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype_of(precision), device_map=device,
                                                     trust_remote_code=False, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _gguf(source: Path | str) -> dict[str, object]:
    """Options for a folder whose weights are in a GGUF file: its values are restored, in the memory of 16 bits."""
    files = list(source.glob("*.gguf")) if isinstance(source, Path) else []
    if len(files) != 1 or any(source.glob("*.safetensors")):
        return {}
    from transformers import GgufConfig

    from .gguf_header import read_gguf_header

    read_gguf_header(files[0])  # says what is wrong with a damaged file
    return {"gguf_file": files[0].name, "quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _reading(source: Path | str) -> Iterator[None]:
    """Whatever goes wrong while a model is read, as one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(source, Path):
            raise OSError(f"cannot read a model from the folder {str(source)!r}: {error}") from error
        raise _hub_error(source, error) from error


def _check_device(device: str | None) -> str:
    import torch

    device = device or profile().device
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device is {device!r}; it must be one that torch knows, such as 'cpu' or 'cuda'") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no CUDA GPU here; use 'cpu'")
    return device


def resolve(name: str | Path) -> Path | str:
    """Where `load` takes a model from: a local folder as a Path, or a hub id as a string.

    Raises:
        LookupError: neither a folder nor of the form of a hub id.
    """
    if name == default_model.NAME:
        return default_model.folder()
    if Path(name).is_dir():
        return Path(name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return str(name)
    raise LookupError(f"name is {str(name)!r}: no folder here has that name, and a hub id looks like 'owner/model'; "
                      f"the default model is {default_model.NAME!r}")


def half_precision() -> str:
    """The 16-bit precision of this machine: "bf16", or "fp16" on a GPU without hardware for it, such as a T4."""
    import torch

    return "fp16" if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else "bf16"


def dtype_of(precision: str) -> torch.dtype:
    """torch's type of a precision; of a quantized one that of embeddings, norms and the LM head, in 16 bit."""
    import torch

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return types[precision if precision in types else half_precision()]


def _bitsandbytes(precision: str, double_quant: bool):
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=precision, bnb_4bit_compute_dtype=dtype_of(precision),
                              bnb_4bit_use_double_quant=double_quant)


def _check_unquantized(name: str, config: PreTrainedConfig, precision: str) -> None:
    """A quantized folder keeps its format; precision is then the type of what is not quantized."""
    made = getattr(config, "quantization_config", None)
    if made and precision in QUANTIZED:
        method = made.get("quant_method", "an unnamed method") if isinstance(made, dict) else made.quant_method
        raise ValueError(f"precision is {precision!r}, but {name} is quantized already ({method}); load it with 'bf16', "
                         "the type of what is not quantized")


def free_memory(device: str = "cpu") -> int:
    """Bytes that can still be allocated on `device`."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[0]
    import psutil

    return psutil.virtual_memory().available


def _check_memory(name: str, config: PreTrainedConfig, precision: str, device: str, double_quant: bool) -> None:
    from .memory import estimate

    free = free_memory(device)

    def needed(candidate: str) -> int:
        return estimate(config, candidate, context=1024, batch=1, double_quant=double_quant).total

    if needed(precision) <= free:
        return
    smaller = ("bf16", "int8", "nf4")
    fits = next((candidate for candidate in smaller if needed(candidate) <= free), None)
    advice = f"{fits!r} would fit ({needed(fits) / 1e9:.2f} GB)" if fits else (
        f"even 'nf4' takes {needed('nf4') / 1e9:.2f} GB: choose a smaller model")
    raise MemoryError(f"{name} in {precision} takes about {needed(precision) / 1e9:.2f} GB, and {free / 1e9:.2f} GB are "
                      f"free on {device}; {advice}, or pass force=True")


def _hub_error(name: str, error: Exception) -> Exception:
    """The error that a learner can act on, out of the chain of causes that the hub's client raised."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return PermissionError(f"{name} is gated: accept its licence on huggingface.co/{name}, then log in with a token "
                               "(hf auth login, or the environment variable HF_TOKEN)")
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in chain):
        return LookupError(f"the hub has no model {name!r}, or it is private: check the spelling, or log in (hf auth login)")
    if any(isinstance(one, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)) for one in chain):
        return ConnectionError(f"the model hub cannot be reached, and {name} is not in its local cache: check the network, "
                               f"or use the default model, load({default_model.NAME!r})")
    return OSError(f"cannot load {name}: {error}")


def chat(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_or_messages: str | list[dict[str, str]], *,
    system: str | None = None, max_new_tokens: int = 128, stream: bool = False, do_sample: bool = False,
    temperature: float | None = None, top_p: float | None = None, top_k: int | None = None,
) -> str:
    """The model's answer, without the prompt and without special tokens; it ends at the end of the model's turn.

    Decoding is greedy, so the same prompt gives the same answer, whatever the model's own generation config says
    (and that config stays as it is). Sampling: `do_sample=True`, and `cl.set_seed` for the same draw again.

    Args:
        prompt_or_messages: the user's words, or messages [{"role": "user", "content": "…"}, …].
        system: a system prompt put before the messages.
        stream: print the answer as it is made.
        temperature, top_p, top_k: only with do_sample=True.

    Raises:
        ValueError: an empty prompt, a wrong role, a sampling argument without sampling or out of range.
    """
    import torch
    from transformers import TextStreamer

    messages = read_messages(prompt_or_messages, system)
    sampling = _sampling(do_sample, temperature, top_p, top_k)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs = inputs.to(model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    with torch.inference_mode():
        output = model.generate(**inputs, **sampling, max_new_tokens=max_new_tokens, streamer=streamer,
                                pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()


def read_messages(prompt_or_messages: str | list[dict[str, str]], system: str | None = None) -> list[dict[str, str]]:
    """The messages of a conversation, checked, a system prompt put before them.

    Raises:
        ValueError: an empty prompt, no messages, a wrong role, or two system prompts.
    """
    if isinstance(prompt_or_messages, str):
        if not prompt_or_messages.strip():
            raise ValueError("prompt_or_messages is empty; ask something")
        messages = [{"role": "user", "content": prompt_or_messages}]
    else:
        messages = list(prompt_or_messages)
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError(f"prompt_or_messages holds {message!r}; a message is a dict with 'role' and 'content'")
            check_choice("role", message["role"], ("system", "user", "assistant"))
        if not messages:
            raise ValueError("prompt_or_messages is empty; ask something")
    if system is not None:
        if messages[0]["role"] == "system":
            raise ValueError("system was given, but the messages already start with a system message; keep one of them")
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _sampling(do_sample: bool, temperature: float | None, top_p: float | None, top_k: int | None) -> dict:
    """Keyword arguments for `generate` that leave nothing to the model's own generation config."""
    every = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    given = {key: value for key, value in every.items() if value is not None}
    if given and not do_sample:
        raise ValueError(f"{', '.join(given)} given without do_sample=True: greedy decoding would ignore it; "
                         "add do_sample=True or leave it out")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0 (for greedy decoding leave out do_sample)")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 0 (no limit) or more")
    # top_k 50 is generate's own default: any other value would log a warning in greedy decoding
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0 if do_sample else 50, "repetition_penalty": 1.0}
    return {"do_sample": do_sample, **neutral, **given}


def main() -> int:
    """Fetch the default model into the cache; what `course.py` calls after an install."""
    try:
        default_model.folder()
    except OSError as error:  # ConnectionError is one
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
