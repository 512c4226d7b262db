"""Rounding by hand: against bitsandbytes, torchao, a direct inversion, and on the real model's
activations."""
import pytest
import torch

from course_lib.data import texts
from course_lib.quantization import rounding


def output_error(weights, rounded, inputs):
    """The share of the layer's output that rounding changes, ‖X (W - Q)ᵀ‖² / ‖X Wᵀ‖²."""
    return float((inputs @ (weights - rounded).T).square().sum() / (inputs @ weights.T).square().sum())


@pytest.fixture(scope="module")
def layer(real):
    """(weights, inputs, held-out inputs) of one MLP projection of the real model on texts of the course."""
    model, tokenizer = real
    module, seen = model.model.layers[10].mlp.gate_proj, []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.inference_mode():
        for split, count in (("train", 8), ("test", 4)):
            for text in texts.load_corpus("en", split)["text"][:count]:
                model(tokenizer(text, return_tensors="pt").input_ids)
    handle.remove()
    return module.weight.detach(), torch.cat(seen[:8]).clone(), torch.cat(seen[8:]).clone()


def test_nf4_levels_are_those_of_bitsandbytes():
    from bitsandbytes.functional import create_normal_map, get_4bit_type

    assert torch.allclose(rounding.nf4_codebook(), get_4bit_type("nf4", device="cpu"), atol=1e-6)
    table = create_normal_map().float()  # scipy's quantiles; 8-bit sized, the rest are zeros
    first_zero = torch.arange(len(table)) == table.eq(0).nonzero()[0]
    assert torch.allclose(rounding.nf4_codebook(), table[table.ne(0) | first_zero], atol=1e-6)


def test_nf4_blocks_are_those_of_bitsandbytes(layer):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = layer[0]
    blocks = rounding.blockwise_absmax(weights, block_size=64, levels=rounding.nf4_codebook())
    packed, state = quantize_4bit(weights, blocksize=64, quant_type="nf4", compress_statistics=False)
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()
    assert torch.equal(blocks.scales, state.absmax.flatten())
    assert (blocks.codes.flatten() == codes).float().mean() > 0.9999  # values on a boundary may go either way
    boundary = 0.2 * float(blocks.scales.max())
    assert torch.allclose(blocks.dequantize(), dequantize_4bit(packed, state), atol=boundary)
    assert (blocks.dequantize() - dequantize_4bit(packed, state)).abs().mean() < 1e-6


def test_int8_rows_are_those_of_bitsandbytes(layer):
    from bitsandbytes.functional import int8_vectorwise_quant

    weights = layer[0]
    blocks = rounding.blockwise_absmax(weights, bits=8, block_size=weights.shape[1])
    codes, scales, _ = int8_vectorwise_quant(weights.half())
    ours = rounding.blockwise_absmax(weights.half(), bits=8, block_size=weights.shape[1])
    assert torch.allclose(ours.scales, scales.flatten())
    difference = (ours.codes.int() - 127 - codes.flatten().view_as(ours.codes)).abs()
    # theirs divides in fp16: neighbours near a boundary
    assert difference.max() <= 1 and difference.float().mean() < 0.003
    assert (blocks.dequantize() - weights).abs().amax(dim=1).le(blocks.scales / 254 * 1.001).all()


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@pytest.mark.parametrize("shape", ((7, 13), (64,), (3, 4, 5)))
def test_the_error_is_at_most_half_a_step(bits, shape):
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    blocks = rounding.blockwise_absmax(weights, bits=bits, block_size=16)
    step = blocks.scales.max() / (2 ** (bits - 1) - 1)
    assert blocks.dequantize().shape == weights.shape
    assert (blocks.dequantize() - weights).abs().max() <= step / 2 * 1.0001
    again = rounding.blockwise_absmax(blocks.dequantize(), bits=bits, block_size=16)
    assert torch.equal(again.codes, blocks.codes)


def test_the_nearest_level_is_taken():
    levels = torch.tensor([-1.0, -0.2, 0.0, 0.7, 1.0])
    weights = torch.tensor([2.0, -2.0, 0.6, 0.8, -0.25, 0.0])
    blocks = rounding.blockwise_absmax(weights, block_size=6, levels=levels)
    nearest = (weights[:, None] / 2 - levels).abs().argmin(dim=1)
    assert blocks.codes.flatten().tolist() == nearest.tolist() and blocks.scales.tolist() == [2.0]


def test_zeros_stay_zeros():
    blocks = rounding.blockwise_absmax(torch.zeros(70), block_size=64)
    assert torch.equal(blocks.dequantize(), torch.zeros(70))
    assert torch.equal(rounding.round_to_nearest(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_double_quantization_saves_what_the_paper_says(layer):
    plain = rounding.bits_per_weight(4, 64)
    double = rounding.bits_per_weight(4, 64, double_block=256)
    assert plain == 4.5 and double == pytest.approx(4.127, abs=5e-4)
    assert plain - double == pytest.approx(0.373, abs=5e-4)
    scales = rounding.blockwise_absmax(layer[0], levels=rounding.nf4_codebook()).scales
    mean = scales.mean()
    blocks = rounding.blockwise_absmax(scales - mean, bits=8, block_size=256)
    assert ((blocks.dequantize() + mean - scales) / scales).abs().mean() < 0.005


def test_bits_per_weight_are_those_of_the_catalog():
    from transformers import LlamaConfig

    from course_lib.models import catalog

    config = LlamaConfig(hidden_size=4096, intermediate_size=16384, num_hidden_layers=4, vocab_size=32)
    for double, block in ((False, None), (True, 256)):
        shapes = catalog.linear_shapes(config)
        stored = catalog.weight_bytes(config, "nf4", double_quant=double) - 2 * shapes.outside
        expected = rounding.bits_per_weight(4, 64, double_block=block)
        assert 8 * stored / shapes.inside == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize("bits", (3, 4, 8))
def test_round_to_nearest_is_that_of_torchao(layer, bits):
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    weights, largest = layer[0], 2**bits - 1
    scale, zero = choose_qparams_affine(weights, MappingType.ASYMMETRIC, (1, 64), torch.uint8, 0, largest,
                                        scale_dtype=torch.float32, zero_point_dtype=torch.int32)
    codes = quantize_affine(weights, (1, 64), scale, zero, torch.uint8, 0, largest)
    theirs = dequantize_affine(codes, (1, 64), scale, zero, torch.uint8, 0, largest,
                               output_dtype=torch.float32)
    ours = rounding.round_to_nearest(weights, bits=bits, group_size=64)
    steps = (ours - theirs).abs().unflatten(1, (-1, 64)) / scale.view(len(weights), -1, 1)
    # these weights lie on Q4_1's grid: real ties
    assert steps.max() < 1.001 and steps.gt(0.01).float().mean() < 0.001


def by_direct_inversion(weights, inputs, bits, group_size, damping):
    """GPTQ as the papers derive it: after each column the Hessian of the columns that are left is inverted
    anew."""
    weights, inputs = weights.double().clone(), inputs.double()
    hessian = inputs.T @ inputs
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    for column in range(weights.shape[1]):
        if column % group_size == 0:
            group = weights[:, column:column + group_size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale).round()
        inverse = torch.linalg.inv(hessian[column:, column:])
        value = weights[:, column].clone()
        nearest = ((value / scale + zero).round().clamp(0, 2**bits - 1) - zero) * scale
        weights[:, column:] -= ((value - nearest) / inverse[0, 0])[:, None] * inverse[0]
        weights[:, column] = nearest
    return weights


@pytest.mark.parametrize("bits", (2, 4))
def test_gptq_is_what_the_derivation_says(bits):
    generator = torch.Generator().manual_seed(bits)
    weights = torch.randn(5, 32, generator=generator)
    mixing = torch.randn(32, 32, generator=generator)  # makes the inputs correlated
    inputs = torch.randn(200, 32, generator=generator) @ mixing
    ours = rounding.gptq_round(weights, inputs, bits=bits, group_size=16)
    assert torch.allclose(ours.double(), by_direct_inversion(weights, inputs, bits, 16, 0.01), atol=1e-4)


def test_gptq_and_awq_beat_plain_rounding_on_real_activations(layer):
    weights, inputs, held_out = layer
    plain = rounding.round_to_nearest(weights)
    gptq, (awq, alpha) = rounding.gptq_round(weights, inputs), rounding.awq_round(weights, inputs)
    for seen in (inputs, held_out):
        base = output_error(weights, plain, seen)
        assert output_error(weights, gptq, seen) < 0.8 * base
        assert output_error(weights, awq, seen) < 0.95 * base
    assert 0 < alpha < 1
    # further from the weights, nearer in output
    assert (gptq - weights).square().sum() > (plain - weights).square().sum()


def test_awq_finds_the_scales_of_torchao(layer):
    from torchao.prototype.awq.core import AWQObserver
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    weights, inputs, _ = layer
    base = IntxWeightOnlyConfig(torch.int4, PerGroup(64))
    observer = AWQObserver(torch.nn.Parameter(weights), None, base)
    observer(inputs, None)
    theirs = observer.calculate_qparams()
    _, alpha = rounding.awq_round(weights, inputs)
    size = inputs.abs().mean(dim=0)
    candidates = [size ** (step / 20) for step in range(20)]
    candidates = [scales / (scales.max() * scales.min()).sqrt() for scales in candidates]
    nearest = min(range(20), key=lambda step: float((candidates[step] - theirs).abs().max()))
    assert torch.allclose(candidates[nearest], theirs, rtol=1e-4)
    # their grid is symmetric about zero, so the best exponent may be a neighbour
    assert abs(nearest / 20 - alpha) <= 0.101


def test_gptq_loses_no_more_than_that_of_gptqmodel(layer):
    pytest.importorskip("gptqmodel", reason="in the extra parity, which needs a C compiler")
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    weights, inputs, _ = layer
    linear = torch.nn.Linear(*reversed(weights.shape), bias=False)
    linear.weight.data = weights.clone()
    settings = QuantizeConfig(bits=4, group_size=64, sym=False, desc_act=False, act_group_aware=False)
    theirs = GPTQ(linear, settings)
    theirs.quantizer.configure(perchannel=True)
    theirs.add_batch(inputs[None], None)
    rounded = theirs.quantize()[0].float()
    ours = rounding.gptq_round(weights, inputs)
    assert output_error(weights, ours, inputs) < 1.05 * output_error(weights, rounded, inputs)


@pytest.mark.parametrize("call, message", (
    (lambda w, x: rounding.blockwise_absmax(w, bits=1), "bits is 1"),
    (lambda w, x: rounding.blockwise_absmax(w, bits=9), "bits is 9"),
    (lambda w, x: rounding.blockwise_absmax(w, block_size=0), "block_size is 0"),
    (lambda w, x: rounding.blockwise_absmax(w[:0]), "empty"),
    (lambda w, x: rounding.blockwise_absmax(w / 0), "NaN or infinity"),
    (lambda w, x: rounding.round_to_nearest(w, group_size=48), "group_size is 48"),
    (lambda w, x: rounding.round_to_nearest(w[0]), "must be a matrix"),
    (lambda w, x: rounding.round_to_nearest(w, bits=0), "bits is 0"),
    (lambda w, x: rounding.gptq_round(w, x[:, :32]), "inputs have the shape"),
    (lambda w, x: rounding.gptq_round(w, x[:0]), "at least one token"),
    (lambda w, x: rounding.gptq_round(w, x, group_size=30), "group_size is 30"),
    (lambda w, x: rounding.awq_round(w, x[None]), "inputs have the shape"),
))
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 64), torch.randn(8, 64))
