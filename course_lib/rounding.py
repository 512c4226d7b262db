"""Rounding weights to a few bits, written to be read; `quantize` does it to whole models.

Every scheme stores small integers and, for each block or group of weights, a scale. `blockwise_absmax` divides by the
largest magnitude of a block and takes the nearest of a few levels: evenly spaced ones, or NF4's, the quantiles of a normal
distribution. GPTQ and AWQ keep the evenly spaced levels and choose better integers: they look at the layer's inputs X and
make the output error ‖X (W - Q)ᵀ‖² small instead of the weight error ‖W - Q‖².

Weights have the shape of a linear layer's, (D_out, D_in); groups run along D_in. Sources: NF4 and double quantization,
Dettmers et al. 2023 (QLoRA, arXiv 2305.14314, section 3 and appendix E); GPTQ, Frantar et al. 2022 (arXiv 2210.17323,
algorithm 1); AWQ, Lin et al. 2023 (arXiv 2306.00978, section 3.2).
"""
from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch


@dataclass(frozen=True)
class Blocks:
    """Weights as indices into a table of levels, and a scale for each block.

    Attributes:
        codes: (blocks, block_size) uint8, indices into `levels`; the last block is filled up with the level nearest to 0.
        scales: (blocks,) fp32, the largest magnitude of each block.
        levels: (2^bits or one less,) fp32, ascending from -1 to 1.
        shape: of the weights.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    levels: torch.Tensor
    shape: torch.Size

    def dequantize(self) -> torch.Tensor:
        """The weights that the codes stand for, in fp32: level times scale."""
        flat = (self.levels[self.codes.long()] * self.scales[:, None]).flatten()
        return flat[:self.shape.numel()].view(self.shape)


def absmax_levels(bits: int) -> torch.Tensor:
    """The evenly spaced levels k / (2^(bits-1) - 1), from -1 to 1: one fewer than 2^bits, so that 0 is a level."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it must be from 2 to 8")
    largest = 2 ** (bits - 1) - 1
    return torch.arange(-largest, largest + 1) / largest


def nf4_levels() -> torch.Tensor:
    """The 16 levels of NF4 (QLoRA, appendix E): quantiles of a standard normal distribution, scaled to [-1, 1].

    Eight above zero and seven below it, from probabilities that are evenly spaced between 1/2 and the outermost one, and
    zero itself; the outermost probability lies halfway between 1 - 1/30 and 1 - 1/32, the ends for 15 and 16 levels.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2

    def half(count: int) -> list[float]:
        step = (outermost - 0.5) / count
        return [NormalDist().inv_cdf(outermost - step * index) for index in range(count)]

    levels = torch.tensor(sorted([*half(8), 0.0, *(-value for value in half(7))]))
    return levels / levels.max()


def blockwise_absmax(
    weights: torch.Tensor, *, bits: int = 8, block_size: int = 64, levels: torch.Tensor | None = None,
) -> Blocks:
    """Divide each block of weights by its largest magnitude and store the index of the nearest level.

    Args:
        weights: any shape; blocks are taken along the flattened tensor.
        bits: for evenly spaced levels (`absmax_levels`), 2 to 8; without effect if `levels` are given.
        block_size: weights that share a scale; one outlier costs the others of its block their precision, no more.
        levels: ascending from -1 to 1, at most 256, such as `nf4_levels()`.

    Raises:
        ValueError: bits or block_size out of range, no weights, or weights that are not finite.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    if weights.numel() == 0 or not weights.isfinite().all():
        raise ValueError(f"weights of shape {tuple(weights.shape)} are empty or hold NaN or infinity; nothing to quantize")
    levels = (absmax_levels(bits) if levels is None else levels).to(weights.device)
    flat = weights.detach().flatten().float()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    scales = blocks.abs().amax(dim=1)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], middles)
    return Blocks(codes.to(torch.uint8), scales, levels, weights.shape)


def double_quantize(scales: torch.Tensor, block_size: int = 256) -> tuple[Blocks, torch.Tensor]:
    """Quantize the scales as well (QLoRA, section 3): their mean is taken off, the rest goes to 8 bits in blocks.

    Returns:
        The 8-bit blocks and the mean; `blocks.dequantize() + mean` gives the scales back, rounded.
    """
    mean = scales.mean()
    return blockwise_absmax(scales - mean, bits=8, block_size=block_size), mean


def bits_per_weight(bits: int, block_size: int, *, scale_bits: int = 32, double_block: int | None = None) -> float:
    """Storage of a weight in bits, its share of the scales included.

    A block of B weights with one scale of s bits: bits + s / B. With double quantization the scale takes 8 bits and shares
    an s-bit scale of the second level with `double_block` others: bits + 8 / B + s / (B · double_block).
    """
    if double_block is None:
        return bits + scale_bits / block_size
    return bits + 8 / block_size + scale_bits / (block_size * double_block)


def round_to_nearest(weights: torch.Tensor, *, bits: int = 4, group_size: int = 64) -> torch.Tensor:
    """Each weight to the nearest of 2^bits evenly spaced values between its group's smallest and largest; dequantized.

    The range always contains 0, and 0 is exactly one of the values.

    Raises:
        ValueError: weights that are not a matrix, or group_size does not divide D_in.
    """
    return restore(*group_codes(weights, bits=bits, group_size=group_size))


def group_codes(
    weights: torch.Tensor, *, bits: int = 4, group_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `round_to_nearest` stores: w ≈ (code - zero) · scale.

    Returns:
        codes (D_out, groups, group_size) from 0 to 2^bits - 1, scale and zero (D_out, groups); all fp32, codes and zero
        whole numbers.
    """
    groups = _groups(weights, group_size)
    scale, zero, largest = _grid(groups, bits)
    return ((groups / scale).round() + zero).clamp(0, largest), scale.squeeze(-1), zero.squeeze(-1)


def restore(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The weights (D_out, D_in) that codes (D_out, groups, group_size) with their scale and zero (D_out, groups) stand for."""
    return ((codes - zero[..., None]) * scale[..., None]).flatten(1)


def gptq_round(
    weights: torch.Tensor, inputs: torch.Tensor, *, bits: int = 4, group_size: int = 64, damping: float = 0.01,
) -> torch.Tensor:
    """GPTQ for one linear layer, as `gptq_codes`; the rounded weights, dequantized, in fp32.

    Args:
        weights: (D_out, D_in); inputs: (tokens, D_in), what the layer saw on calibration texts.

    Raises:
        ValueError: shapes that don't fit, or group_size does not divide D_in.
    """
    _check_inputs(weights, inputs)
    gram = inputs.float().T @ inputs.float()
    return restore(*gptq_codes(weights, gram, bits=bits, group_size=group_size, damping=damping))


def gptq_codes(
    weights: torch.Tensor, gram: torch.Tensor, *, bits: int = 4, group_size: int = 64, damping: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round a column at a time and let the columns to its right make up for the error (GPTQ, algorithm 1).

    H = XᵀX says how inputs occur together; U is the upper Cholesky factor of (H + λI)⁻¹, with λ = damping · mean(diag H).
    Column i's error, over U_ii, times row i of U is what the columns after it have to give back. Each group's scale and zero
    are set when it is reached.

    Args:
        weights: (D_out, D_in); gram: H, (D_in, D_in).

    Returns:
        Codes, scale and zero as `group_codes` gives them.
    """
    left = weights.detach().float().clone()
    codes = torch.empty_like(_groups(left, group_size)).flatten(1)
    gram = gram.clone()
    gram.diagonal().add_(damping * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram)), upper=True)
    scales, zeros = [], []
    for start in range(0, left.shape[1], group_size):
        group, errors = left[:, start:start + group_size], []
        scale, zero, largest = _grid(group, bits)
        for column in range(group_size):
            value, row = group[:, column, None], factor[start + column]
            code = ((value / scale).round() + zero).clamp(0, largest)
            codes[:, start + column, None] = code
            errors.append((value - (code - zero) * scale) / row[start + column])
            group[:, column + 1:] -= errors[-1] * row[start + column + 1:start + group_size]
        scales.append(scale)
        zeros.append(zero)
        # the columns behind the group get their share in one product instead of column by column
        left[:, start + group_size:] -= torch.cat(errors, dim=1) @ factor[start:start + group_size, start + group_size:]
    return codes.unflatten(1, (-1, group_size)), torch.cat(scales, dim=1), torch.cat(zeros, dim=1)


def awq_round(
    weights: torch.Tensor, inputs: torch.Tensor, *, bits: int = 4, group_size: int = 64, steps: int = 20,
) -> tuple[torch.Tensor, float]:
    """AWQ for one linear layer, as `awq_scales`.

    Args:
        weights: (D_out, D_in); inputs: (tokens, D_in), what the layer saw on calibration texts.

    Returns:
        The rounded weights with the scales divided out again, in fp32, and α.

    Raises:
        ValueError: shapes that don't fit, or group_size does not divide D_in.
    """
    _check_inputs(weights, inputs)
    weights, inputs = weights.detach().float(), inputs.float()
    scales, alpha = awq_scales(weights, inputs.T @ inputs, inputs.abs().mean(dim=0), bits=bits, group_size=group_size,
                               steps=steps)
    return round_to_nearest(weights * scales, bits=bits, group_size=group_size) / scales, alpha


def awq_scales(
    weights: torch.Tensor, gram: torch.Tensor, size: torch.Tensor, *, bits: int = 4, group_size: int = 64, steps: int = 20,
) -> tuple[torch.Tensor, float]:
    """Scales for the columns, so that those with large inputs lose less when rounded; the inputs are divided by the same.

    A scale s_i = size_i^α for each input leaves X Wᵀ as it is (AWQ, equation 4). α is the best of `steps` values from 0
    (plain rounding) to just below 1 (equation 5), by the error of the output, ‖X E‖² = Σ (E H) ∘ E with H = XᵀX.

    Args:
        weights: (D_out, D_in), and gram H (D_in, D_in): its type is that of the products.
        size: (D_in,), mean|x| of each input.

    Returns:
        (D_in,) scales in fp32, and α.
    """
    weights, size, best = weights.detach().float(), size.float().clamp(min=1e-4), (float("inf"), None, 0.0)
    for step in range(steps):
        scales = size ** (step / steps)
        scales = scales / (scales.max() * scales.min()).sqrt()
        lost = weights - round_to_nearest(weights * scales, bits=bits, group_size=group_size) / scales
        error = float(((lost.to(gram.dtype) @ gram).float() * lost).sum())
        if error < best[0]:
            best = error, scales, step / steps
    return best[1:]


def output_error(weights: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    """‖X (W - Q)ᵀ‖² / ‖X Wᵀ‖²: the share of the layer's output that rounding changes, 0 for none."""
    weights, rounded, inputs = weights.detach().float(), rounded.float(), inputs.float()
    return float((inputs @ (weights - rounded).T).square().sum() / (inputs @ weights.T).square().sum())


def _groups(weights: torch.Tensor, group_size: int) -> torch.Tensor:
    if weights.dim() != 2 or group_size < 1 or weights.shape[1] % group_size:
        raise ValueError(f"group_size is {group_size} and weights have the shape {tuple(weights.shape)}; weights must be a "
                         "matrix (D_out, D_in) with D_in a multiple of group_size")
    return weights.detach().float().unflatten(1, (-1, group_size))


def _check_inputs(weights: torch.Tensor, inputs: torch.Tensor) -> None:
    if inputs.dim() != 2 or not len(inputs) or inputs.shape[1] != weights.shape[-1]:
        raise ValueError(f"inputs have the shape {tuple(inputs.shape)} and weights {tuple(weights.shape)}; inputs must be "
                         "(tokens, D_in) with at least one token")


def _grid(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scale and zero point of each group (last dimension), and the largest integer."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it must be from 2 to 8")
    largest = 2**bits - 1
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, (-low / scale).round(), largest
