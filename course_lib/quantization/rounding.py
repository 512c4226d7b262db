"""Round the weights of one layer to a few bits, in readable code; `cl.quantize` does whole models.

Every scheme stores small integers and a scale for each block or group of weights. `blockwise_absmax` divides
a block by its largest magnitude and takes the nearest level: evenly spaced levels, or NF4's quantiles of a
normal distribution. GPTQ and AWQ use the layer's inputs X to minimise the output error ‖X (W - Q)ᵀ‖² instead
of the weight error ‖W - Q‖². Weights have shape (D_out, D_in); groups run along D_in.

Sources: NF4, Dettmers et al. 2023 (QLoRA, arXiv 2305.14314, section 3 and appendix E); GPTQ, Frantar et al.
2022 (arXiv 2210.17323, algorithm 1); AWQ, Lin et al. 2023 (arXiv 2306.00978, section 3.2).
"""
from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch

from ..models.int4 import affine_grid, dequantize, group_codes, split_into_groups


@dataclass(frozen=True)
class Blocks:
    """Weights as indices into a codebook, with one scale per block.

    Attributes:
        codes: (blocks, block_size) uint8, indices into `levels`; the level next to 0 pads the last block.
        scales: (blocks,) fp32, the largest magnitude of each block.
        levels: the codebook, (2^bits or one fewer,) fp32, ascending from -1 to 1.
        shape: shape of the weights.
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
    """The 2^bits - 1 evenly spaced levels k / (2^(bits-1) - 1) from -1 to 1, which include 0."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it must be from 2 to 8")
    largest = 2 ** (bits - 1) - 1
    return torch.arange(-largest, largest + 1) / largest


def nf4_codebook() -> torch.Tensor:
    """The 16 levels of NF4 (QLoRA, appendix E): quantiles of a standard normal, scaled to [-1, 1].

    Seven are below zero, eight above it, and one is zero. Their probabilities are evenly spaced between 1/2
    and the outermost one, the mean of 1 - 1/30 (for 15 levels) and 1 - 1/32 (for 16).
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
        weights: any shape; blocks run along the flattened tensor.
        bits: 2 to 8, for evenly spaced levels; ignored if `levels` is given.
        block_size: weights that share a scale; an outlier costs precision only in its own block.
        levels: ascending from -1 to 1, at most 256, such as `nf4_codebook()`.

    Raises:
        ValueError: bits or block_size out of range, or weights that are empty or not finite.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    if weights.numel() == 0 or not weights.isfinite().all():
        raise ValueError(f"weights of shape {tuple(weights.shape)} are empty or hold NaN or infinity")
    levels = (absmax_levels(bits) if levels is None else levels).to(weights.device)
    flat = weights.detach().flatten().float()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    scales = blocks.abs().amax(dim=1)
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None], middles)
    return Blocks(codes.to(torch.uint8), scales, levels, weights.shape)


def bits_per_weight(
    bits: int, block_size: int, *, scale_bits: int = 32, double_block: int | None = None,
) -> float:
    """Bits stored per weight, including its share of the scales.

    B weights with one scale of s bits: bits + s / B. With double quantization (QLoRA, section 3), scales have
    8 bits, and `double_block` of them share an s-bit scale: bits + 8 / B + s / (B · double_block).
    """
    if double_block is None:
        return bits + scale_bits / block_size
    return bits + 8 / block_size + scale_bits / (block_size * double_block)


def round_to_nearest(weights: torch.Tensor, *, bits: int = 4, group_size: int = 64) -> torch.Tensor:
    """Round each weight to the nearest of 2^bits evenly spaced values of its group; returns them dequantized.

    The values span the group's range, extended to include 0, which is always one of them. A ValueError is
    raised if weights are no matrix or group_size does not divide D_in.
    """
    return dequantize(*group_codes(weights, bits=bits, group_size=group_size))


def gptq_round(
    weights: torch.Tensor, inputs: torch.Tensor, *, bits: int = 4, group_size: int = 64,
    damping: float = 0.01,
) -> torch.Tensor:
    """Round one linear layer with GPTQ (see `gptq_codes`); returns the weights dequantized, in fp32.

    Weights are (D_out, D_in), inputs (tokens, D_in) from calibration texts. A ValueError is raised if the
    shapes do not fit or group_size does not divide D_in.
    """
    _check_inputs(weights, inputs)
    hessian = inputs.float().T @ inputs.float()
    return dequantize(*gptq_codes(weights, hessian, bits=bits, group_size=group_size, damping=damping))


def gptq_codes(
    weights: torch.Tensor, hessian: torch.Tensor, *, bits: int = 4, group_size: int = 64,
    damping: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round column by column; the columns to the right compensate for each error (GPTQ, algorithm 1).

    Weights are (D_out, D_in), and `hessian` is H = XᵀX, (D_in, D_in). U is the upper Cholesky factor of
    (H + λI)⁻¹, with λ = damping · mean(diag H). After column i is rounded, its error over U_ii, times row i
    of U, is subtracted from the columns to its right. A group's scale and zero point are set at its first
    column. Returns codes (D_out, groups, group_size), scale and zero point (D_out, groups).
    """
    remaining = weights.detach().float().clone()  # columns to round, corrected for earlier errors
    codes = torch.empty_like(split_into_groups(remaining, group_size)).flatten(1)
    damped = hessian.clone()
    damped.diagonal().add_(damping * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    scales: list[torch.Tensor] = []
    zero_points: list[torch.Tensor] = []
    for start in range(0, remaining.shape[1], group_size):
        end = start + group_size
        group = remaining[:, start:end]
        errors: list[torch.Tensor] = []
        scale, zero_point, largest = affine_grid(group, bits)
        for column in range(group_size):
            value = group[:, column, None]
            row = factor[start + column]
            code = ((value / scale).round() + zero_point).clamp(0, largest)
            codes[:, start + column, None] = code
            errors.append((value - (code - zero_point) * scale) / row[start + column])
            group[:, column + 1:] -= errors[-1] * row[start + column + 1:end]
        scales.append(scale)
        zero_points.append(zero_point)
        # columns after the group are corrected in one product instead of column by column
        remaining[:, end:] -= torch.cat(errors, dim=1) @ factor[start:end, end:]
    return codes.unflatten(1, (-1, group_size)), torch.cat(scales, dim=1), torch.cat(zero_points, dim=1)


def awq_round(
    weights: torch.Tensor, inputs: torch.Tensor, *, bits: int = 4, group_size: int = 64, steps: int = 20,
) -> tuple[torch.Tensor, float]:
    """Round one linear layer with AWQ (see `awq_scales`); returns the weights dequantized, in fp32, and α.

    Weights are (D_out, D_in), inputs (tokens, D_in) from calibration texts. A ValueError is raised if the
    shapes do not fit or group_size does not divide D_in.
    """
    _check_inputs(weights, inputs)
    weights = weights.detach().float()
    inputs = inputs.float()
    scales, alpha = awq_scales(weights, inputs.T @ inputs, inputs.abs().mean(dim=0), bits=bits,
                               group_size=group_size, steps=steps)
    return round_to_nearest(weights * scales, bits=bits, group_size=group_size) / scales, alpha


def awq_scales(
    weights: torch.Tensor, hessian: torch.Tensor, mean_abs: torch.Tensor, *, bits: int = 4,
    group_size: int = 64, steps: int = 20,
) -> tuple[torch.Tensor, float]:
    """Find scales (D_in,) that reduce the rounding error of columns with large inputs; returns them and α.

    Column i is multiplied by s_i = mean|x_i|^α and input i is divided by it, so X Wᵀ stays the same (AWQ,
    equation 4). The search tries `steps` values of α, from 0 (plain rounding) to just below 1, and takes the
    one with the smallest output error (equation 5): ‖X Eᵀ‖² = Σ (E H) ∘ E, with the weights' error E.

    Args:
        weights: (D_out, D_in).
        hessian: H = XᵀX, (D_in, D_in); its dtype is that of the products.
        mean_abs: (D_in,), mean|x| of each input.
    """
    weights = weights.detach().float()
    mean_abs = mean_abs.float().clamp(min=1e-4)
    best = (float("inf"), None, 0.0)
    for step in range(steps):
        scales = mean_abs ** (step / steps)
        scales = scales / (scales.max() * scales.min()).sqrt()
        lost = weights - round_to_nearest(weights * scales, bits=bits, group_size=group_size) / scales
        error = float(((lost.to(hessian.dtype) @ hessian).float() * lost).sum())
        if error < best[0]:
            best = (error, scales, step / steps)
    return best[1:]


def _check_inputs(weights: torch.Tensor, inputs: torch.Tensor) -> None:
    if inputs.dim() != 2 or not len(inputs) or inputs.shape[1] != weights.shape[-1]:
        raise ValueError(f"inputs have the shape {tuple(inputs.shape)} and weights {tuple(weights.shape)}; "
                         "inputs must be (tokens, D_in) with at least one token")
