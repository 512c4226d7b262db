"""Linear layers with 4-bit weights: the result of the methods "rtn", "gptq", "awq" and "qat".

A weight is w ≈ (code - zero_point) · scale, with a code from 0 to 15, and a scale and a zero point for each
group of weights along D_in. A file stores two codes per byte, which gives 4 + 32 / group_size bits per weight
with 16-bit scales and zero points. On a CPU, the codes in memory follow the order of PyTorch's 4-bit kernel
(the kernel of torchao's int4); a file does not, because that order depends on the processor. On other
devices, each product dequantizes the weights first. `save_pretrained` and `cl.load` handle the format,
because it is registered with transformers
(https://huggingface.co/docs/transformers/main/en/quantization/contribute).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "course_int4"


def split_into_groups(weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """Group weights into (D_out, groups, group_size), fp32; ValueError unless group_size divides D_in."""
    if weights.dim() != 2 or group_size < 1 or weights.shape[1] % group_size:
        raise ValueError(f"group_size is {group_size} and weights have the shape {tuple(weights.shape)}; "
                         "weights must be a matrix (D_out, D_in) with D_in a multiple of group_size")
    return weights.detach().float().unflatten(1, (-1, group_size))


def affine_grid(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return scale and zero point per group (last dimension), and the largest code; bits must be 2 to 8."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; it must be from 2 to 8")
    largest = 2**bits - 1
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    high = groups.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return scale, (-low / scale).round(), largest


def group_codes(
    weights: torch.Tensor, *, bits: int = 4, group_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round weights (D_out, D_in) to codes, where w ≈ (code - zero_point) · scale.

    Return codes (D_out, groups, group_size) from 0 to 2^bits - 1, then scale and zero point, both (D_out,
    groups). All are fp32 tensors; codes and zero points hold whole numbers.
    """
    groups = split_into_groups(weights, group_size)
    scale, zero_point, largest = affine_grid(groups, bits)
    codes = ((groups / scale).round() + zero_point).clamp(0, largest)
    return codes, scale.squeeze(-1), zero_point.squeeze(-1)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Dequantize codes (D_out, groups, group_size) to (D_out, D_in); scale, zero_point: (D_out, groups)."""
    return ((codes - zero_point[..., None]) * scale[..., None]).flatten(1)


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights: y = (x · input_scale) Wᵀ + bias.

    in_features must be a multiple of group_size. `scaled_inputs` adds the vector input_scale (AWQ).
    """

    def __init__(self, in_features: int, out_features: int, *, group_size: int = 64, bias: bool = False,
                 scaled_inputs: bool = False, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        shape = (out_features, in_features // group_size)
        self.register_buffer("codes", torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.empty(shape, dtype=dtype))
        self.register_buffer("zero_point", torch.empty(shape, dtype=dtype))
        self.register_buffer("input_scale", torch.empty(in_features, dtype=dtype) if scaled_inputs else None)
        empty_bias = torch.empty(out_features, dtype=dtype)
        self.bias = nn.Parameter(empty_bias, requires_grad=False) if bias else None
        # for the CPU kernel: the codes in its order; scale and (8 - zero_point) · scale as (groups, D_out, 2)
        self.register_buffer("packed", None, persistent=False)
        self.register_buffer("scale_and_offset", None, persistent=False)

    @classmethod
    def from_codes(cls, codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *,
                   dtype: torch.dtype, bias: torch.Tensor | None = None,
                   input_scale: torch.Tensor | None = None) -> Int4Linear:
        """Build a layer from codes (D_out, D_in) from 0 to 15, and scale and zero point (D_out, groups)."""
        rows, columns = codes.shape
        with torch.device(codes.device):
            layer = cls(columns, rows, group_size=columns // scale.shape[1], bias=bias is not None,
                        scaled_inputs=input_scale is not None, dtype=dtype)
        layer.scale = scale.to(dtype)
        layer.zero_point = zero_point.to(dtype)
        layer.input_scale = None if input_scale is None else input_scale.detach().to(dtype, copy=True)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        layer.codes = _pair(codes)
        return layer.for_kernel(codes)

    @classmethod
    def from_weights(cls, weights: torch.Tensor, *, group_size: int = 64, bias: torch.Tensor | None = None,
                     input_scale: torch.Tensor | None = None) -> Int4Linear:
        """Round weights (D_out, D_in) to the nearest codes; all other tensors keep the weights' dtype."""
        codes, scale, zero_point = group_codes(weights, bits=4, group_size=group_size)
        return cls.from_codes(codes.flatten(1).to(torch.uint8), scale, zero_point, dtype=weights.dtype,
                              bias=bias, input_scale=input_scale)

    def for_kernel(self, codes: torch.Tensor | None = None) -> Int4Linear:
        """Bring the codes into the order of the CPU kernel, if it can run here (D_out a multiple of 16)."""
        if self.packed is None and self.codes.device.type == "cpu" and self.out_features % 16 == 0:
            codes = _unpair(self.codes) if codes is None else codes
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
            offset = ((8 - self.zero_point.float()) * self.scale.float()).to(self.scale.dtype)
            self.scale_and_offset = torch.stack((self.scale, offset), -1).transpose(0, 1).contiguous()
            self.codes = None
        return self

    def for_file(self) -> Int4Linear:
        """Bring the codes back into the order of a file."""
        if self.packed is not None:
            self.codes = _pair(self._codes())
            self.packed = None
            self.scale_and_offset = None
        return self

    def _apply(self, *arguments, **named):  # another device or dtype needs another order
        return super(Int4Linear, self.for_file())._apply(*arguments, **named).for_kernel()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (…, D_in) to (…, D_out), in the dtype of the inputs."""
        if self.input_scale is not None:
            inputs = inputs * self.input_scale.to(inputs.dtype)
        if self.packed is None:
            return nn.functional.linear(inputs, self.weights().to(inputs.dtype), self.bias)
        rows = inputs.reshape(-1, self.in_features).to(self.scale_and_offset.dtype).contiguous()
        result = self._product(rows).view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)
        return result if self.bias is None else result + self.bias

    def weights(self) -> torch.Tensor:
        """Return the dequantized weights (D_out, D_in), without the input scale."""
        codes = self._codes().float().unflatten(1, (-1, self.group_size))
        return dequantize(codes, self.scale.float(), self.zero_point.float()).to(self.scale.dtype)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        return multiply(rows, self.packed, self.group_size, self.scale_and_offset)

    def _codes(self) -> torch.Tensor:
        """Return the codes (D_out, D_in), from the kernel's order if need be."""
        if self.packed is None:
            return _unpair(self.codes)
        # a product with the identity yields the weights, and from these the exact codes
        identity = torch.eye(self.in_features, dtype=self.scale_and_offset.dtype)
        groups = self._product(identity).T.float().unflatten(1, (-1, self.group_size))
        scale, offset = self.scale_and_offset.float().unbind(-1)
        codes = (groups - offset.T[..., None]) / scale.T[..., None] + 8
        return codes.round().clamp(0, 15).flatten(1).to(torch.uint8)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "codes"] = _pair(self._codes())

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group_size={self.group_size}"


def _pair(codes: torch.Tensor) -> torch.Tensor:
    return (codes[:, 0::2] << 4 | codes[:, 1::2]).contiguous()


def _unpair(pairs: torch.Tensor) -> torch.Tensor:
    return torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten(1)


@register_quantization_config(METHOD)
@dataclass
class Int4Config(QuantizationConfigMixin):
    """The entry in config.json: group size, scaled inputs or not, the layers, and the method."""

    group_size: int = 64
    scaled_inputs: bool = False
    layers: tuple[str, ...] = ()
    made_by: str = "rtn"
    quant_method: str = METHOD


@register_quantizer(METHOD)
class Int4Quantizer(HfQuantizer):
    """Puts `Int4Linear` layers where the config says, before transformers reads the weights."""

    requires_calibration = True  # `cl.quantize` makes such a model; loading with this config does not

    def _process_model_before_weight_loading(self, model, **kwargs):
        config = self.quantization_config
        for name in config.layers:
            old = model.get_submodule(name)
            new = Int4Linear(
                old.in_features, old.out_features, group_size=config.group_size, bias=old.bias is not None,
                scaled_inputs=config.scaled_inputs, dtype=model.config.dtype)
            model.set_submodule(name, new.to("meta"))
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in model.modules():
            if isinstance(module, Int4Linear):
                module.for_kernel()
        return model

    def is_serializable(self):
        """Return True, because `save_pretrained` works."""
        return True

    @property
    def is_trainable(self):
        """Return False: products compute no gradient for their inputs, so adapters cannot learn either."""
        return False


def replace_layers(model, layers: dict[str, Int4Linear], made_by: str):
    """Put the 4-bit layers into the model, and record the format in its config for saving."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    first = next(iter(layers.values()))
    config = Int4Config(group_size=first.group_size, scaled_inputs=first.input_scale is not None,
                        layers=tuple(layers), made_by=made_by)
    model.config.quantization_config = config
    model.hf_quantizer = Int4Quantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = METHOD
    return model
