"""The reference modules against transformers' own with the same weights, and the conversions against what they promise."""
import copy

import pytest
import torch
import transformers as hf
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from course_lib import architectures as arch
from course_lib import catalog, memory

CLOSE = 1e-5  # the largest difference from another implementation, in fp32


def largest_difference(a, b):
    return float((a - b).abs().max())


def largest_weight_difference(module, other):
    return max(largest_difference(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True))


def random_hidden(tokens, size, batch=2, seed=1):
    return torch.randn(batch, tokens, size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(model, ids):
    return model(ids).logits


# --- grouped-query attention -------------------------------------------------------------------------------------

def twin_of(attention, **changes):
    """Our module with the weights of a transformers attention layer."""
    config = attention.config
    values = {"hidden_size": config.hidden_size, "num_heads": config.num_attention_heads,
              "num_kv_heads": config.num_key_value_heads, "head_dim": attention.head_dim,
              "rope_theta": config.rope_parameters["rope_theta"], "qkv_bias": attention.q_proj.bias is not None, **changes}
    ours = arch.GroupedQueryAttention(**values)
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
    return model.model.layers[layer].input_layernorm(model(ids, output_hidden_states=True).hidden_states[layer])


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
    config = hf.Qwen2Config(vocab_size=11, hidden_size=48, intermediate_size=16, num_hidden_layers=1, num_attention_heads=6,
                         num_key_value_heads=2, initializer_range=0.3)
    model = hf.Qwen2ForCausalLM(config).eval()
    for bias in (part.bias for part in model.modules() if getattr(part, "bias", None) is not None):
        bias.normal_()
    hidden = random_hidden(9, 48)
    assert largest_difference(twin_of(model.model.layers[0].self_attn)(hidden)[0], library_attention(model, 0, hidden)) < CLOSE


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [range(1, 12), (5,), (3, 4, 10)], ids=str)
def test_a_cache_gives_what_the_whole_sequence_gives(real, cuts):
    ours, hidden = twin_of(real[0].model.layers[0].self_attn), real_input(real, 0)
    whole, (keys, values) = ours(hidden)
    parts, past = [], None
    for piece in torch.tensor_split(hidden, tuple(cuts), dim=1):
        out, past = ours(piece, past)
        parts.append(out)
    assert largest_difference(torch.cat(parts, dim=1), whole) < CLOSE
    assert largest_difference(past[0], keys) < CLOSE and largest_difference(past[1], values) < CLOSE


@torch.inference_mode()
def test_the_future_and_the_padding_are_not_seen():
    torch.manual_seed(0)
    ours, hidden = arch.GroupedQueryAttention(32, 4, 2), random_hidden(8, 32)
    changed = hidden.clone()
    changed[:, 5:] = 9.0
    assert torch.equal(ours(changed)[0][:, :5], ours(hidden)[0][:, :5])
    padded = torch.cat((random_hidden(3, 32, seed=2), hidden), dim=1)  # on the left; only relative positions count
    real_tokens = torch.arange(11).ge(3).expand(2, -1)
    out = ours(padded, padding=real_tokens)[0]
    assert largest_difference(out[:, 3:], ours(hidden)[0]) < CLOSE and out.isfinite().all()
    assert largest_difference(ours(padded)[0][:, 3:], ours(hidden)[0]) > 0.01


@torch.inference_mode()
def test_shared_heads_are_repeated_heads():
    """GQA whose heads are copied becomes an MHA with the same output: an independent way to say what a group is."""
    torch.manual_seed(0)
    shared, every = arch.GroupedQueryAttention(48, 6, 2), arch.GroupedQueryAttention(48, 6, 6)
    weights = shared.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        heads = weights[name].view(2, 8, 48)
        weights[name] = torch.cat([heads[number // 3] for number in range(6)])
    every.load_state_dict(weights)
    hidden = random_hidden(7, 48)
    assert largest_difference(shared(hidden)[0], every(hidden)[0]) < CLOSE


def test_rotary_keeps_lengths_and_only_relative_positions_count():
    queries, keys = random_hidden(1, 16)[:, None], random_hidden(1, 16, seed=2)[:, None]

    def score(query_at, key_at):
        turned = arch.rotary(queries, torch.tensor([query_at])), arch.rotary(keys, torch.tensor([key_at]))
        return (turned[0] * turned[1]).sum(-1)

    assert torch.equal(arch.rotary(queries, torch.tensor([0])), queries)
    assert torch.allclose(arch.rotary(queries, torch.tensor([77])).norm(), queries.norm())
    assert torch.allclose(score(5, 3), score(105, 103), atol=1e-4)
    assert not torch.allclose(score(5, 3), score(5, 4), atol=1e-2)


@pytest.mark.parametrize("make, arguments, words", [
    (arch.GroupedQueryAttention, (48, 6, 4), "num_kv_heads is 4; it must divide num_heads, 6"),
    (arch.GroupedQueryAttention, (48, 6, 0), "num_kv_heads is 0"),
    (arch.GroupedQueryAttention, (50, 6, 2), "hidden_size is 50, no multiple of num_heads"),
    (arch.GroupedQueryAttention, (48, 6, 2, 7), "head_dim is 7; it must be even"),
    (arch.SoftCapAttention, (8, 2, 1, 4, 4, 0), "cap is 0 and query_pre_attn_scalar is 4; both must be above 0"),
    (arch.SoftCapAttention, (8, 2, 1, 4, -1), "query_pre_attn_scalar is -1; both must be above 0"),
    (arch.causal_mask, (5, 4), "queries is 5 and keys is 4"), (arch.causal_mask, (5, 5, 0), "window is 0"),
    (arch.SparseMoE, (8, 16, 4, 0), "top_k is 0; it must be between 1 and num_experts, 4"),
    (arch.SparseMoE, (8, 16, 4, 5), "top_k is 5; it must be between 1 and num_experts, 4"),
])
def test_what_cannot_be_is_refused(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(*arguments)


# --- masks -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("window", [None, 1, 3, 8, 20])
def test_masks_equal_the_librarys(window):
    config = hf.Gemma2Config(hidden_size=8, num_attention_heads=1, num_key_value_heads=1, sliding_window=window or 1)
    config._attn_implementation = "eager"
    make = create_sliding_window_causal_mask if window else create_causal_mask
    theirs = make(config, torch.zeros(1, 8, 8), attention_mask=None, past_key_values=None, position_ids=torch.arange(8)[None])
    assert torch.equal(arch.causal_mask(8, window=window), theirs[0, 0] == 0)


def test_a_window_keeps_exactly_that_many_keys():
    assert arch.causal_mask(9, window=4).sum(1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    assert torch.equal(arch.causal_mask(2, 9, window=4), arch.causal_mask(9, window=4)[-2:])


# --- Gemma 2 -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def gemma():
    """A random Gemma 2 with a head size apart from hidden size / heads, and scores that the cap bends."""
    torch.manual_seed(0)
    config = hf.Gemma2Config(vocab_size=50, hidden_size=40, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24, sliding_window=5,
                          attn_logit_softcapping=2.0, initializer_range=0.3)
    return hf.Gemma2ForCausalLM(config).eval()


def capped_twin(attention, **changes):
    config = attention.config
    values = {"hidden_size": config.hidden_size, "num_heads": config.num_attention_heads,
              "num_kv_heads": config.num_key_value_heads, "head_dim": config.head_dim,
              "query_pre_attn_scalar": config.query_pre_attn_scalar, "cap": config.attn_logit_softcapping,
              "sliding_window": attention.sliding_window, **changes}
    ours = arch.SoftCapAttention(**values)
    ours.load_state_dict(attention.state_dict())
    return ours


@torch.inference_mode()
@pytest.mark.parametrize("number, make", [(0, create_sliding_window_causal_mask), (1, create_causal_mask)])
def test_soft_cap_attention_equals_gemma2(gemma, number, make):
    attention = gemma.model.layers[number].self_attn
    assert (attention.sliding_window is None) == (number == 1) and attention.head_dim != 40 // 4
    hidden, positions = random_hidden(13, 40), torch.arange(13)[None]
    mask = make(gemma.config, hidden, attention_mask=None, past_key_values=None, position_ids=positions)
    theirs = attention(hidden, gemma.model.rotary_emb(hidden, positions), attention_mask=mask)[0]
    ours = capped_twin(attention)
    assert largest_difference(ours(hidden)[0], theirs) < CLOSE
    first, past = ours(hidden[:, :9])
    assert largest_difference(torch.cat((first, ours(hidden[:, 9:], past)[0]), dim=1), theirs) < CLOSE
    for other in ({"cap": 50.0}, {"query_pre_attn_scalar": 16}, {"sliding_window": 6}):  # each of them matters
        assert largest_difference(capped_twin(attention, **other)(hidden)[0], theirs) > 0.01


def test_soft_cap():
    x = torch.linspace(-300, 300, 61)
    capped = arch.soft_cap(x, 50.0)
    assert capped.abs().max() <= 50 and torch.equal(capped, -capped.flip(0)) and (capped.diff() >= 0).all()
    assert torch.allclose(arch.soft_cap(torch.tensor([0.5]), 50.0), torch.tensor([0.5]), rtol=1e-4)


# --- fewer key/value heads ---------------------------------------------------------------------------------------

def test_merging_into_as_many_heads_changes_nothing(real):
    model = copy.deepcopy(real[0])
    assert arch.mha_to_gqa(model, 3) is model
    assert largest_weight_difference(model, real[0]) == 0


def test_merged_heads_are_the_means_of_neighbours():
    torch.manual_seed(0)
    layer = arch.GroupedQueryAttention(48, 6, 6, qkv_bias=True)
    old = {name: value.clone() for name, value in layer.state_dict().items()}
    arch.mha_to_gqa(layer, 2)
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        rows = old[name]
        expected = [(rows[at:at + 8] + rows[at + 8:at + 16] + rows[at + 16:at + 24]) / 3 for at in (0, 24)]
        assert torch.allclose(layer.state_dict()[name], torch.cat(expected))
    assert torch.equal(layer.q_proj.weight, old["q_proj.weight"]) and torch.equal(layer.o_proj.weight, old["o_proj.weight"])
    fresh = arch.GroupedQueryAttention(48, 6, 2, qkv_bias=True)
    fresh.load_state_dict(layer.state_dict())
    hidden = random_hidden(5, 48)
    assert torch.equal(layer(hidden)[0], fresh(hidden)[0])


def test_equal_heads_merge_without_a_loss(tiny):
    model, _ = tiny
    for projection in (part for layer in model.model.layers for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)):
        projection.weight.data[16:] = projection.weight.data[:16]
    ids = torch.arange(3, 20)[None]
    before = logits_of(model, ids)
    arch.mha_to_gqa(model, 1)
    assert largest_difference(logits_of(model, ids), before) < CLOSE


def test_a_merged_model_is_worse_smaller_and_can_be_saved(real, tmp_path):
    model, tokenizer = copy.deepcopy(real[0]), real[1]
    ids = tokenizer("The capital of France is Paris. The capital of Spain is Madrid.", return_tensors="pt").input_ids
    with torch.inference_mode():
        before = model(ids, labels=ids).loss
        arch.mha_to_gqa(model, 1)
        after = model(ids, labels=ids)
        cache = model(ids, use_cache=True).past_key_values
    assert after.loss > before + 1 and model.num_parameters() == catalog.count_parameters(model.config)
    assert cache.layers[0].keys.shape[1] == 1
    model.save_pretrained(tmp_path)
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert largest_difference(logits_of(again, ids), after.logits) < CLOSE


def test_one_layer_of_a_model_leaves_its_config_alone(tiny):
    model, _ = tiny
    arch.mha_to_gqa(model.model.layers[0].self_attn, 1)
    assert model.config.num_key_value_heads == 2
    assert logits_of(model, torch.arange(3, 20)[None]).isfinite().all()
    with pytest.raises(ValueError, match="num_kv_heads is 2; it must divide the present 1, 2"):
        arch.mha_to_gqa(model, 2)


def test_what_cannot_be_merged_is_refused(tiny):
    with pytest.raises(ValueError, match="num_kv_heads is 0; it must divide the present 2"):
        arch.mha_to_gqa(tiny[0], 0)
    with pytest.raises(ValueError, match="without k_proj and v_proj"):
        arch.mha_to_gqa(catalog.skeleton("microsoft/Phi-3-mini-4k-instruct"), 8)


# --- mixture of experts ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=[(4, 2), (5, 1), (3, 3)], ids=str)
def mixtral_and_ours(request):
    """transformers' block and ours with the same random weights."""
    experts, top_k = request.param
    torch.manual_seed(0)
    theirs = MixtralSparseMoeBlock(hf.MixtralConfig(hidden_size=24, intermediate_size=40, num_local_experts=experts,
                                                 num_experts_per_tok=top_k)).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ours = arch.SparseMoE(24, 40, experts, top_k)
    weights = {"router.weight": theirs.gate.weight}
    for number in range(experts):
        gate, up = theirs.experts.gate_up_proj[number].chunk(2)
        weights |= {f"experts.{number}.gate_proj.weight": gate, f"experts.{number}.up_proj.weight": up,
                    f"experts.{number}.down_proj.weight": theirs.experts.down_proj[number]}
    ours.load_state_dict(weights)
    return theirs, ours


@torch.inference_mode()
def test_a_mixture_equals_mixtrals(mixtral_and_ours):
    theirs, ours = mixtral_and_ours
    hidden = random_hidden(17, 24, batch=3)
    assert largest_difference(ours(hidden), theirs(hidden)) < CLOSE
    assert largest_difference(ours.router_logits, theirs.gate(hidden)[0]) < CLOSE
    assert ours(hidden[0]).shape == (17, 24)


@torch.inference_mode()
def test_a_mixture_is_the_sum_over_all_experts(mixtral_and_ours):
    """The formula with every expert computed for every token, where G is 0 for those that are not chosen."""
    _, ours = mixtral_and_ours
    hidden = random_hidden(17, 24)
    exponents = ours.router(hidden).double().exp()
    smallest_kept = exponents.sort(descending=True).values[..., ours.top_k - 1, None]
    gates = torch.where(exponents >= smallest_kept, exponents, 0.0)
    gates /= gates.sum(-1, keepdim=True)
    expected = sum(gates[..., number, None] * expert(hidden) for number, expert in enumerate(ours.experts))
    assert largest_difference(ours(hidden), expected) < CLOSE


def test_the_load_balancing_loss_equals_mixtrals(mixtral_and_ours):
    _, ours = mixtral_and_ours
    layers = tuple(ours.router(random_hidden(40, 24, batch=1, seed=seed)[0]) for seed in (1, 2, 3))
    for some in (layers[:1], layers):
        expected = load_balancing_loss_func(some, len(ours.experts), ours.top_k)
        assert torch.allclose(arch.load_balancing_loss(torch.cat(some), ours.top_k), expected)


def test_the_load_balancing_loss_is_least_when_balanced():
    even = torch.eye(4)[torch.arange(400) % 4] * 20.0
    assert arch.load_balancing_loss(even, 1) == pytest.approx(1.0)
    assert arch.load_balancing_loss(torch.zeros(400, 4), 2) == pytest.approx(2.0)
    crowded = torch.tensor([20.0, 0, 0, 0]).repeat(400, 1).requires_grad_()
    loss = arch.load_balancing_loss(crowded / 10, 1)
    assert 2 < loss.item() < 4
    loss.backward()
    assert (crowded.grad[:, 0] > 0).all() and (crowded.grad[:, 1:] < 0).all()  # a step down spreads the tokens


def test_the_gradient_reaches_router_and_experts():
    torch.manual_seed(0)
    mixture = arch.SparseMoE(8, 16, 4, 2)
    (mixture(random_hidden(30, 8)).square().mean() + 0.01 * arch.load_balancing_loss(mixture.router_logits, 2)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in mixture.parameters())


# --- upcycling ---------------------------------------------------------------------------------------------------

def test_upcycling_the_real_model_leaves_its_logits(real):
    model, tokenizer = copy.deepcopy(real[0]), real[1]
    ids = tokenizer("Sparse models keep all their experts in memory.", return_tensors="pt").input_ids
    before, dense = logits_of(model, ids), model.num_parameters()
    block = sum(weight.numel() for weight in model.model.layers[0].mlp.parameters())
    assert arch.upcycle_to_moe(model, 3, 2, layers=range(0, 30, 2)) is model
    assert largest_difference(logits_of(model, ids), before) < 1e-4
    routers = 15 * 3 * 576
    assert model.num_parameters() == dense + 15 * 2 * block + routers
    assert arch.active_parameters(model) == dense + 15 * block + routers
    assert sum(isinstance(part, arch.SparseMoE) for part in model.modules()) == 15


def test_upcycled_experts_are_copies_that_training_parts(tiny):
    model, _ = tiny
    torch.manual_seed(0)
    arch.upcycle_to_moe(model, 4)
    mixture = model.model.layers[0].mlp
    assert largest_weight_difference(mixture.experts[0], mixture.experts[3]) == 0 and not mixture.training
    ids = torch.randint(3, 250, (4, 32))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    first = model(ids, labels=ids).loss
    first.backward()
    optimizer.step()
    assert largest_weight_difference(mixture.experts[0], mixture.experts[3]) > 1e-5
    assert model(ids, labels=ids).loss < first


def test_what_cannot_be_upcycled_is_refused(tiny):
    model, _ = tiny
    with pytest.raises(ValueError, match="layers holds 2; the model has layers 0 to 1"):
        arch.upcycle_to_moe(model, 4, layers=[0, 2])
    with pytest.raises(ValueError, match="top_k is 5"):
        arch.upcycle_to_moe(model, 4, 5)
    assert arch.active_parameters(model) == model.num_parameters(), "a refused call changed the model"
    arch.upcycle_to_moe(model, 4, layers=[1])
    with pytest.raises(ValueError, match="layers holds 1, whose block is a SparseMoE"):
        arch.upcycle_to_moe(model, 4)
    assert not isinstance(model.model.layers[0].mlp, arch.SparseMoE)


# --- the cache ---------------------------------------------------------------------------------------------------

def test_cache_bytes_are_those_of_a_real_cache(real):
    model, _ = real
    cache = hf.DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.randint(0, 1000, (2, 21)), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert arch.kv_cache_bytes(model.config, 21, batch=2, width=4) == held == 2 * 21 * 30 * 2 * 3 * 64 * 4
    assert arch.kv_cache_bytes is memory.kv_cache_bytes
    assert sum(part.nbytes for part in twin_of(model.model.layers[0].self_attn)(random_hidden(21, 576))[1]) == held / 30
