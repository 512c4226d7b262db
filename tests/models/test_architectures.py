"""The reference modules against transformers' own with the same weights."""


import pytest
import torch
import transformers as hf
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from course_lib.models import architectures, memory
from tests.models.layers import CLOSE, largest_difference, random_hidden

# --- grouped-query attention


def twin_of(attention, **changes):
    """Our module with the weights of a transformers attention layer."""
    config = attention.config
    values = {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": attention.head_dim,
        "rope_theta": config.rope_parameters["rope_theta"],
        "qkv_bias": attention.q_proj.bias is not None,
        **changes,
    }
    ours = architectures.GroupedQueryAttention(**values)
    ours.load_state_dict(attention.state_dict())
    return ours


def library_attention(model, layer, hidden):
    turns = model.model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None])
    return model.model.layers[layer].self_attn(hidden, turns, attention_mask=None)[0]


@torch.inference_mode()
def real_input(real, layer):
    """What the attention of one layer of the real model gets for a sentence."""
    model, tokenizer = real
    ids = tokenizer("Small models are useful, and they fit into a pocket.", return_tensors="pt").input_ids
    return model.model.layers[layer].input_layernorm(
        model(ids, output_hidden_states=True).hidden_states[layer]
    )


@torch.inference_mode()
@pytest.mark.parametrize("layer", [0, 17])
def test_attention_equals_a_layer_of_the_real_model(real, layer):
    hidden = real_input(real, layer)
    ours, (keys, _) = twin_of(real[0].model.layers[layer].self_attn)(hidden)
    assert largest_difference(ours, library_attention(real[0], layer, hidden)) < CLOSE
    assert keys.shape == (1, 3, hidden.shape[1], 64)


@torch.inference_mode()
def test_attention_with_biases_equals_qwen2():
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=11, hidden_size=48, intermediate_size=16, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.3)
    model = hf.Qwen2ForCausalLM(config).eval()
    for bias in (part.bias for part in model.modules() if getattr(part, "bias", None) is not None):
        bias.normal_()
    hidden = random_hidden(9, 48)
    ours, _ = twin_of(model.model.layers[0].self_attn)(hidden)
    assert largest_difference(ours, library_attention(model, 0, hidden)) < CLOSE


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [range(1, 12), (5,), (3, 4, 10)], ids=str)
def test_a_cache_gives_what_the_whole_sequence_gives(real, cuts):
    ours = twin_of(real[0].model.layers[0].self_attn)
    hidden = real_input(real, 0)
    whole, (keys, values) = ours(hidden)
    parts = []
    past = None
    for piece in torch.tensor_split(hidden, tuple(cuts), dim=1):
        out, past = ours(piece, past)
        parts.append(out)
    assert largest_difference(torch.cat(parts, dim=1), whole) < CLOSE
    assert largest_difference(past[0], keys) < CLOSE and largest_difference(past[1], values) < CLOSE


@torch.inference_mode()
def test_the_future_and_the_padding_are_not_seen():
    torch.manual_seed(0)
    ours = architectures.GroupedQueryAttention(32, 4, 2)
    hidden = random_hidden(8, 32)
    changed = hidden.clone()
    changed[:, 5:] = 9.0
    assert torch.equal(ours(changed)[0][:, :5], ours(hidden)[0][:, :5])
    padded = torch.cat((random_hidden(3, 32, seed=2), hidden), dim=1)  # only relative positions count
    real_tokens = torch.arange(11).ge(3).expand(2, -1)
    out = ours(padded, padding=real_tokens)[0]
    assert largest_difference(out[:, 3:], ours(hidden)[0]) < CLOSE and out.isfinite().all()
    assert largest_difference(ours(padded)[0][:, 3:], ours(hidden)[0]) > 0.01


@torch.inference_mode()
def test_shared_heads_are_repeated_heads():
    """GQA whose heads are copied becomes an MHA with the same output: another way to say what a group is."""
    torch.manual_seed(0)
    shared = architectures.GroupedQueryAttention(48, 6, 2)
    every = architectures.GroupedQueryAttention(48, 6, 6)
    weights = shared.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = weights[name].view(2, 8, 48)
        weights[name] = torch.cat([heads[number // 3] for number in range(6)])
    every.load_state_dict(weights)
    hidden = random_hidden(7, 48)
    assert largest_difference(shared(hidden)[0], every(hidden)[0]) < CLOSE


def test_rotary_keeps_lengths_and_only_relative_positions_count():
    queries = random_hidden(1, 16)[:, None]
    keys = random_hidden(1, 16, seed=2)[:, None]

    def score(query_at, key_at):
        turned = (
            architectures.rotary(queries, torch.tensor([query_at])),
            architectures.rotary(keys, torch.tensor([key_at])),
        )
        return (turned[0] * turned[1]).sum(-1)

    assert torch.equal(architectures.rotary(queries, torch.tensor([0])), queries)
    assert torch.allclose(architectures.rotary(queries, torch.tensor([77])).norm(), queries.norm())
    assert torch.allclose(score(5, 3), score(105, 103), atol=1e-4)
    assert not torch.allclose(score(5, 3), score(5, 4), atol=1e-2)


@pytest.mark.parametrize(
    "make, arguments, words",
    [
        (architectures.GroupedQueryAttention, (48, 6, 4), "num_kv_heads is 4; it must divide num_heads, 6"),
        (architectures.GroupedQueryAttention, (48, 6, 0), "num_kv_heads is 0"),
        (architectures.GroupedQueryAttention, (50, 6, 2), "hidden_size is 50, no multiple of num_heads"),
        (architectures.GroupedQueryAttention, (48, 6, 2, 7), "head_dim is 7; it must be even"),
        (architectures.SoftCapAttention, (8, 2, 1, 4, 4, 0), "cap is 0 and query_pre_attn_scalar is 4; both"),
        (architectures.SoftCapAttention, (8, 2, 1, 4, -1), "query_pre_attn_scalar is -1; both must"),
        (architectures.causal_mask, (5, 4), "queries is 5 and keys is 4"),
        (architectures.causal_mask, (5, 5, 0), "window is 0"),
        (architectures.SparseMoE, (8, 16, 4, 0), "top_k is 0; it must be between 1 and num_experts, 4"),
        (architectures.SparseMoE, (8, 16, 4, 5), "top_k is 5; it must be between 1 and num_experts, 4"),
    ],
)
def test_what_cannot_be_is_refused(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(*arguments)


# --- masks

@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_masks_equal_the_librarys(window):
    config = hf.Gemma2Config(
        hidden_size=8, num_attention_heads=1, num_key_value_heads=1, sliding_window=window or 1
    )
    config._attn_implementation = "eager"
    make = create_sliding_window_causal_mask if window else create_causal_mask
    theirs = make(config, torch.zeros(1, 8, 8), attention_mask=None, past_key_values=None,
                  position_ids=torch.arange(8)[None])
    assert torch.equal(architectures.causal_mask(8, window=window), theirs[0, 0] == 0)


def test_a_window_keeps_exactly_that_many_keys():
    assert architectures.causal_mask(9, window=4).sum(1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert torch.equal(architectures.causal_mask(2, 9, window=4), architectures.causal_mask(9, window=4)[-2:])


# --- Gemma 2

@pytest.fixture(scope="module")
def gemma():
    """A random Gemma 2 with a head size apart from hidden size / heads, and scores that the cap bends."""
    torch.manual_seed(0)
    config = hf.Gemma2Config(
        vocab_size=50, hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24, sliding_window=5,
        attn_logit_softcapping=2.0, initializer_range=0.3)
    return hf.Gemma2ForCausalLM(config).eval()


def capped_twin(attention, **changes):
    config = attention.config
    values = {"hidden_size": config.hidden_size, "num_heads": config.num_attention_heads,
              "num_kv_heads": config.num_key_value_heads, "head_dim": config.head_dim,
              "query_pre_attn_scalar": config.query_pre_attn_scalar, "cap": config.attn_logit_softcapping,
              "sliding_window": attention.sliding_window, **changes}
    ours = architectures.SoftCapAttention(**values)
    ours.load_state_dict(attention.state_dict())
    return ours


@torch.inference_mode()
@pytest.mark.parametrize("number, make", [(0, create_sliding_window_causal_mask), (1, create_causal_mask)])
def test_soft_cap_attention_equals_gemma2(gemma, number, make):
    attention = gemma.model.layers[number].self_attn
    assert (attention.sliding_window is None) == (number == 1) and attention.head_dim != 40 // 4
    hidden = random_hidden(13, 40)
    positions = torch.arange(13)[None]
    mask = make(gemma.config, hidden, attention_mask=None, past_key_values=None, position_ids=positions)
    theirs = attention(hidden, gemma.model.rotary_emb(hidden, positions), attention_mask=mask)[0]
    ours = capped_twin(attention)
    assert largest_difference(ours(hidden)[0], theirs) < CLOSE
    first, past = ours(hidden[:, :9])
    assert largest_difference(torch.cat((first, ours(hidden[:, 9:], past)[0]), dim=1), theirs) < CLOSE
    for other in ({"cap": 50.0}, {"query_pre_attn_scalar": 16}, {"sliding_window": 6}):  # each matters
        assert largest_difference(capped_twin(attention, **other)(hidden)[0], theirs) > 0.01


def test_soft_cap():
    x = torch.linspace(-300, 300, 61)
    capped = architectures.soft_cap(x, 50.0)
    assert capped.abs().max() <= 50 and torch.equal(capped, -capped.flip(0)) and (capped.diff() >= 0).all()
    assert torch.allclose(architectures.soft_cap(torch.tensor([0.5]), 50.0), torch.tensor([0.5]), rtol=1e-4)


# --- the cache

def test_cache_bytes_are_those_of_a_real_cache(real):
    model, _ = real
    cache = hf.DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.randint(0, 1000, (2, 21)), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.kv_cache_bytes(model.config, 21, batch=2, width=4) == held == 2 * 21 * 30 * 2 * 3 * 64 * 4
    assert memory.kv_cache_bytes is memory.kv_cache_bytes
    _, keys_values = twin_of(model.model.layers[0].self_attn)(random_hidden(21, 576))
    assert sum(tensor.nbytes for tensor in keys_values) == held / 30
