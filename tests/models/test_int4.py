"""The 4-bit layer: its kernel against the weights it stands for, and its way into a file and back."""
import pytest
import torch
from torch import nn

from course_lib import loading
from course_lib.models import int4
from course_lib.models.int4 import Int4Linear, replace_layers
from course_lib.quantization import rounding

pytestmark = pytest.mark.usefixtures("one_thread")


def layer_of(rows=48, columns=128, group_size=64, dtype=torch.float32, bias=True, scaled=False):
    generator = torch.Generator().manual_seed(rows + columns)
    weights = torch.randn(rows, columns, generator=generator, dtype=dtype) / columns**0.5
    vector = torch.randn(rows, generator=generator, dtype=dtype) if bias else None
    scale = torch.rand(columns, generator=generator, dtype=dtype) + 0.5 if scaled else None
    layer = Int4Linear.from_weights(weights, group_size=group_size, bias=vector, input_scale=scale)
    return weights, vector, scale, layer


@pytest.mark.parametrize("rows", (48, 33))  # the kernel wants a multiple of 16; else the weights are restored
@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-4), (torch.bfloat16, 0.03)))
def test_it_multiplies_with_the_rounded_weights(rows, dtype, tolerance):
    weights, bias, scale, layer = layer_of(rows, dtype=dtype, scaled=True)
    rounded = rounding.round_to_nearest(weights)
    assert (layer.weights().float() - rounded).abs().max() < (1e-6 if dtype == torch.float32 else 0.01)
    inputs = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = nn.functional.linear(inputs.float() * scale.float(), rounded, bias.float())
    assert layer(inputs).dtype == dtype and layer(inputs).shape == (2, 5, rows)
    assert torch.allclose(layer(inputs).float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("group_size", (32, 64, 128))
def test_the_codes_come_out_of_the_kernels_order_unchanged(group_size):
    weights, _, _, layer = layer_of(group_size=group_size, dtype=torch.bfloat16)
    codes, _, _ = int4.group_codes(weights, bits=4, group_size=group_size)
    assert layer.packed is not None and torch.equal(layer._codes(), codes.flatten(1).to(torch.uint8))


def test_codes_at_the_ends_and_far_from_zero_survive():
    codes = torch.arange(16, dtype=torch.uint8).repeat(16, 4)
    for zero_point in (0.0, 8.0, 15.0):
        scale = torch.full((16, 1), 0.37)
        layer = Int4Linear.from_codes(codes, scale, torch.full((16, 1), zero_point), dtype=torch.bfloat16)
        assert torch.equal(layer._codes(), codes)


def test_it_takes_four_bits_and_its_scales():
    _, _, _, layer = layer_of(256, 512, bias=False, dtype=torch.bfloat16)
    stored = sum(tensor.nbytes for tensor in layer.state_dict().values())
    held = sum(tensor.nbytes for tensor in layer.buffers())
    # scale and zero point, 16 bit each
    assert 8 * stored / (256 * 512) == rounding.bits_per_weight(4, 64, scale_bits=32)
    assert held == stored + 2 * layer.scale.nbytes  # the kernel wants scale and zero side by side


def test_another_dtype_is_as_good_as_a_new_layer():
    _, _, _, layer = layer_of(dtype=torch.float32)
    inputs = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    before = layer(inputs)
    assert torch.allclose(layer.to(torch.bfloat16)(inputs.bfloat16()).float(), before, atol=0.05)
    assert layer.packed is not None and layer.scale_and_offset.dtype == torch.bfloat16


@pytest.mark.parametrize("scaled", (False, True))
def test_a_model_with_such_layers_is_saved_and_loaded(tiny_folder, tmp_path, scaled):
    model, tokenizer = loading.load(tiny_folder, "bf16")
    scale = torch.full((64,), 0.5, dtype=torch.bfloat16) if scaled else None
    layers = {name: Int4Linear.from_weights(module.weight.detach(), input_scale=scale)
              for name, module in model.named_modules() if name.endswith(("q_proj", "gate_proj"))}
    replace_layers(model, layers, "rtn")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = loading.load(tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert isinstance(loaded.model.layers[1].mlp.gate_proj, Int4Linear)
    assert type(loaded.model.layers[1].mlp.up_proj) is nn.Linear
    assert loaded.config.quantization_config.made_by == "rtn"
