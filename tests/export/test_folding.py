"""Folded scales: the same outputs as before, against torch's own folding of batch norms."""
import pytest
import torch
from torch import nn

from course_lib import loading
from course_lib.export import folding
from tests.export.greedy import ASK, greedy, prompt_ids


def randomized(model):
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
    return model


def model_of(kind, **changes):
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
             "pad_token_id": 0, **changes}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    torch.manual_seed(0)
    return randomized(getattr(transformers, f"{kind}ForCausalLM")(config).eval())


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Gemma2", "Phi3"])
@pytest.mark.parametrize("tied", [False, True])
def test_folded_norms_change_nothing(kind, tied):
    model = model_of(kind, tie_word_embeddings=tied)
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    folded = folding.fold_norms(model)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, folded(ids).logits, atol=1e-5)
    neutral = 0.0 if kind == "Gemma2" else 1.0
    norms = [layer.input_layernorm.weight for layer in folded.model.layers]
    assert all(torch.equal(weight, torch.full_like(weight, neutral)) for weight in norms)
    assert torch.equal(folded.model.norm.weight, model.model.norm.weight) == tied
    assert model.model.layers[0].input_layernorm.weight.std() > 0  # the model itself stays


def test_the_real_model_folds(real):
    model, tokenizer = real
    folded = folding.fold_norms(model)
    ids = torch.tensor([prompt_ids(tokenizer, ASK)])
    with torch.inference_mode():
        expected = model(ids).logits
        actual = folded(ids).logits
    assert (expected - actual).abs().max() < 1e-5 * expected.abs().max()
    assert greedy(folded, tokenizer, ASK, 8) == greedy(model, tokenizer, ASK, 8)


def test_what_cannot_be_folded_is_named(tiny_folder):
    with pytest.raises(ValueError, match="LayerNorm|has none of the linear layers|has no"):
        folding.fold_norms(model_of("Phi", intermediate_size=64))
    with pytest.raises(ValueError, match="quantized"):
        folding.fold_norms(loading.load(tiny_folder, "nf4")[0])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_norm_folds_as_torch_does_it(bias, groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.train()(torch.randn(8, 6, 5, 5) * 3 + 1)
    norm.eval()
    images = torch.randn(2, 4, 9, 9)
    folded = folding.fold_batch_norm(conv, norm)
    theirs = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm)
    assert torch.allclose(folded(images), norm(conv(images)), atol=1e-5)
    assert torch.allclose(folded.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(folded.bias, theirs.bias, atol=1e-6)


def test_a_batch_norm_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="batch_norm has 5 channels, but conv gives 6"):
        folding.fold_batch_norm(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match="no running statistics"):
        folding.fold_batch_norm(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
