"""Mixtures of experts against transformers' own, and what the conversions of trained models promise."""

import copy

import pytest
import torch
import transformers as hf
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from course_lib.models import architectures, catalog
from tests.models.layers import CLOSE, largest_difference, largest_weight_difference, logits_of, random_hidden

# --- fewer key/value heads

def test_merging_into_as_many_heads_changes_nothing(tiny):
    model, _ = tiny
    before = copy.deepcopy(model)
    assert architectures.mha_to_gqa(model, 2) is model
    assert largest_weight_difference(model, before) == 0


def test_merged_heads_are_the_means_of_neighbours():
    torch.manual_seed(0)
    layer = architectures.GroupedQueryAttention(48, 6, 6, qkv_bias=True)
    old = {name: value.clone() for name, value in layer.state_dict().items()}
    architectures.mha_to_gqa(layer, 2)
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        rows = old[name]
        expected = [(rows[at:at + 8] + rows[at + 8:at + 16] + rows[at + 16:at + 24]) / 3 for at in (0, 24)]
        assert torch.allclose(layer.state_dict()[name], torch.cat(expected))
    assert torch.equal(layer.q_proj.weight, old["q_proj.weight"])
    assert torch.equal(layer.o_proj.weight, old["o_proj.weight"])
    fresh = architectures.GroupedQueryAttention(48, 6, 2, qkv_bias=True)
    fresh.load_state_dict(layer.state_dict())
    hidden = random_hidden(5, 48)
    assert torch.equal(layer(hidden)[0], fresh(hidden)[0])


def test_equal_heads_merge_without_a_loss(tiny):
    model, _ = tiny
    attentions = [layer.self_attn for layer in model.model.layers]
    for projection in (getattr(attention, name) for attention in attentions for name in ("k_proj", "v_proj")):
        projection.weight.data[16:] = projection.weight.data[:16]
    ids = torch.arange(3, 20)[None]
    before = logits_of(model, ids)
    architectures.mha_to_gqa(model, 1)
    assert largest_difference(logits_of(model, ids), before) < CLOSE


def test_a_merged_model_is_worse(real):
    model = copy.deepcopy(real[0])
    text = "The capital of France is Paris. The capital of Spain is Madrid."
    ids = real[1](text, return_tensors="pt").input_ids
    with torch.inference_mode():
        before = model(ids, labels=ids).loss
        architectures.mha_to_gqa(model, 1)
        assert model(ids, labels=ids).loss > before + 1


def test_a_merged_model_is_smaller_and_can_be_saved(tiny, tmp_path):
    model, _ = tiny
    ids = torch.arange(3, 20)[None]
    architectures.mha_to_gqa(model, 1)
    assert model.num_parameters() == catalog.count_parameters(model.config)
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[1] == 1
    model.save_pretrained(tmp_path)
    again = hf.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert largest_difference(logits_of(again, ids), logits_of(model, ids)) < CLOSE


def test_one_layer_of_a_model_leaves_its_config_alone(tiny):
    model, _ = tiny
    architectures.mha_to_gqa(model.model.layers[0].self_attn, 1)
    assert model.config.num_key_value_heads == 2
    assert logits_of(model, torch.arange(3, 20)[None]).isfinite().all()
    with pytest.raises(ValueError, match="num_kv_heads is 2; it must divide the present 1, 2"):
        architectures.mha_to_gqa(model, 2)


def test_what_cannot_be_merged_is_refused(tiny):
    with pytest.raises(ValueError, match="num_kv_heads is 0; it must divide the present 2"):
        architectures.mha_to_gqa(tiny[0], 0)
    with pytest.raises(ValueError, match="without k_proj and v_proj"):
        architectures.mha_to_gqa(catalog.skeleton("microsoft/Phi-3-mini-4k-instruct"), 8)


# --- mixture of experts

@pytest.fixture(scope="module", params=[(4, 2), (5, 1), (3, 3)], ids=str)
def mixtral_and_ours(request):
    """transformers' block and ours with the same random weights."""
    experts, top_k = request.param
    torch.manual_seed(0)
    theirs = MixtralSparseMoeBlock(
        hf.MixtralConfig(
            hidden_size=24, intermediate_size=40, num_local_experts=experts, num_experts_per_tok=top_k
        )
    ).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ours = architectures.SparseMoE(24, 40, experts, top_k)
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
        assert torch.allclose(architectures.load_balancing_loss(torch.cat(some), ours.top_k), expected)


def test_the_load_balancing_loss_is_least_when_balanced():
    even = torch.eye(4)[torch.arange(400) % 4] * 20.0
    assert architectures.load_balancing_loss(even, 1) == pytest.approx(1.0)
    assert architectures.load_balancing_loss(torch.zeros(400, 4), 2) == pytest.approx(2.0)
    crowded = torch.tensor([20.0, 0, 0, 0]).repeat(400, 1).requires_grad_()
    loss = architectures.load_balancing_loss(crowded / 10, 1)
    assert 2 < loss.item() < 4
    loss.backward()
    assert (crowded.grad[:, 0] > 0).all()  # a step down spreads the tokens
    assert (crowded.grad[:, 1:] < 0).all()


def test_the_gradient_reaches_router_and_experts():
    torch.manual_seed(0)
    mixture = architectures.SparseMoE(8, 16, 4, 2)
    loss = mixture(random_hidden(30, 8)).square().mean()
    (loss + 0.01 * architectures.load_balancing_loss(mixture.router_logits, 2)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in mixture.parameters())


# --- upcycling

def test_upcycling_the_real_model_leaves_its_logits(real):
    model = copy.deepcopy(real[0])
    tokenizer = real[1]
    ids = tokenizer("Sparse models keep all their experts in memory.", return_tensors="pt").input_ids
    before = logits_of(model, ids)
    dense = model.num_parameters()
    block = sum(weight.numel() for weight in model.model.layers[0].mlp.parameters())
    assert architectures.upcycle_to_moe(model, 3, 2, layers=range(0, 30, 6)) is model
    assert largest_difference(logits_of(model, ids), before) < 1e-4
    routers = 5 * 3 * 576
    assert model.num_parameters() == dense + 5 * 2 * block + routers
    assert architectures.active_parameters(model) == dense + 5 * block + routers
    assert sum(isinstance(module, architectures.SparseMoE) for module in model.modules()) == 5


def test_upcycled_experts_are_copies_that_training_parts(tiny):
    model, _ = tiny
    torch.manual_seed(0)
    architectures.upcycle_to_moe(model, 4)
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
        architectures.upcycle_to_moe(model, 4, layers=[0, 2])
    with pytest.raises(ValueError, match="top_k is 5"):
        architectures.upcycle_to_moe(model, 4, 5)
    assert architectures.active_parameters(model) == model.num_parameters(), "a refused call changed it"
    architectures.upcycle_to_moe(model, 4, layers=[1])
    with pytest.raises(ValueError, match="layers holds 1, whose block is a SparseMoE"):
        architectures.upcycle_to_moe(model, 4)
    assert not isinstance(model.model.layers[0].mlp, architectures.SparseMoE)
