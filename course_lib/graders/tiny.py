"""Tiny models with random weights, made in memory for graders and tests."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(words: tuple[str, ...] = (), *, context: int = 512) -> PreTrainedTokenizerBase:
    """Tokenizer with one token for each byte and one for each of `words`, merged letter by letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                merges.append((word[:end - 1], word[end - 1]))
                pieces.append(word[:end])
    raw = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=TEMPLATE, model_max_length=context)


def tiny_model(
    tokenizer: PreTrainedTokenizerBase, *, layers: int = 1, width: int = 64, seed: int = 0,
    dtype: str = "float32", spread: float = 0.2, context: int = 512, letters_only: bool = True,
) -> PreTrainedModel:
    """Llama with random weights and tied embeddings.

    `spread`: standard deviation of the weights; a larger one makes predictions surer and more often wrong.
    `letters_only`: the generation config suppresses every token that is not made of ASCII letters.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
                             num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
                             max_position_embeddings=context, bos_token_id=1, eos_token_id=2, pad_token_id=0,
                             tie_word_embeddings=True, initializer_range=spread)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    if letters_only:
        vocabulary = tokenizer.get_vocab().items()
        others = [index for word, index in vocabulary if not (word.isascii() and word.isalpha())]
        model.generation_config.suppress_tokens = sorted(others)
    return model


def slow_to_read(model: PreTrainedModel, seconds: float) -> PreTrainedModel:
    """Return the model with a pause before each pass over several tokens: slow prefill, normal decoding."""
    def wait(module, positional, named):
        ids = named.get("input_ids", positional[0] if positional else None)
        if ids is not None and ids.shape[1] > 1:
            time.sleep(seconds)

    model.register_forward_pre_hook(wait, with_kwargs=True)
    return model
