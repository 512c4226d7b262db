"""Linear layers with 4-bit weights, in a file and at work: what "rtn", "gptq", "awq" and "qat" of `quantize` produce.

A weight is w ≈ (code - zero) · scale with a code from 0 to 15, and scale and zero for each group of weights along D_in. In a
file two codes share a byte: 4 + 32 / group_size bits a weight with scale and zero in 16 bit. At work on a CPU the codes lie
in the order of PyTorch's 4-bit kernel, which depends on the processor; a file never holds that order, so it can be moved.
On other devices the weights are restored for each product.

The format is registered with transformers, so `save_pretrained` and `cl.load` handle it as any other.
Source: https://huggingface.co/docs/transformers/main/en/quantization/contribute; the kernel is that of torchao's int4.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .rounding import group_codes, restore

METHOD = "course_int4"


class Int4Linear(nn.Module):
    """A linear layer whose weights take 4 bits: y = (x · input_scale) Wᵀ + bias.

    Args:
        in_features, out_features: D_in, a multiple of group_size, and D_out.
        scaled_inputs: whether inputs are multiplied by a vector first (AWQ).
    """

    def __init__(self, in_features: int, out_features: int, *, group_size: int = 64, bias: bool = False,
                 scaled_inputs: bool = False, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        shape = (out_features, in_features // group_size)
        self.register_buffer("codes", torch.empty(out_features, in_features // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.empty(shape, dtype=dtype))
        self.register_buffer("zero", torch.empty(shape, dtype=dtype))
        self.register_buffer("input_scale", torch.empty(in_features, dtype=dtype) if scaled_inputs else None)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None
        # codes in the kernel's order, and beside them scale with (8 - zero) · scale, (groups, D_out, 2)
        self.register_buffer("packed", None, persistent=False)
        self.register_buffer("scale_and_zero", None, persistent=False)

    @classmethod
    def from_codes(cls, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, *, dtype: torch.dtype,
                   bias: torch.Tensor | None = None, input_scale: torch.Tensor | None = None) -> Int4Linear:
        """From codes (D_out, D_in) of 0 to 15, and scale and zero (D_out, groups)."""
        rows, columns = codes.shape
        with torch.device(codes.device):
            layer = cls(columns, rows, group_size=columns // scale.shape[1], bias=bias is not None,
                        scaled_inputs=input_scale is not None, dtype=dtype)
        layer.scale, layer.zero = scale.to(dtype), zero.to(dtype)
        layer.input_scale = None if input_scale is None else input_scale.detach().to(dtype, copy=True)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        layer.codes = _pair(codes)
        return layer.for_kernel(codes)

    @classmethod
    def from_weights(cls, weights: torch.Tensor, *, group_size: int = 64, bias: torch.Tensor | None = None,
                     input_scale: torch.Tensor | None = None) -> Int4Linear:
        """Round weights (D_out, D_in) to the nearest, in their own dtype otherwise."""
        codes, scale, zero = group_codes(weights, bits=4, group_size=group_size)
        return cls.from_codes(codes.flatten(1).to(torch.uint8), scale, zero, dtype=weights.dtype, bias=bias,
                              input_scale=input_scale)

    def for_kernel(self, codes: torch.Tensor | None = None) -> Int4Linear:
        """Bring the codes into the order of the CPU's kernel; elsewhere they stay as they are."""
        if self.packed is None and self.codes.device.type == "cpu" and self.out_features % 16 == 0:
            codes = _unpair(self.codes) if codes is None else codes
            self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
            offset = (8 - self.zero.float()) * self.scale.float()
            self.scale_and_zero = torch.stack((self.scale, offset.to(self.scale.dtype)), -1).transpose(0, 1).contiguous()
            self.codes = None
        return self

    def for_file(self) -> Int4Linear:
        """Bring the codes back into the order of a file."""
        if self.packed is not None:
            self.codes, self.packed, self.scale_and_zero = _pair(self._codes()), None, None
        return self

    def _apply(self, *arguments, **named):  # another device or dtype needs another order
        return super(Int4Linear, self.for_file())._apply(*arguments, **named).for_kernel()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, D_in) → (…, D_out), in the dtype of the inputs."""
        if self.input_scale is not None:
            inputs = inputs * self.input_scale.to(inputs.dtype)
        if self.packed is None:
            return nn.functional.linear(inputs, self.weights().to(inputs.dtype), self.bias)
        rows = inputs.reshape(-1, self.in_features).to(self.scale_and_zero.dtype).contiguous()
        result = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, self.group_size, self.scale_and_zero)
        result = result.view(*inputs.shape[:-1], self.out_features).to(inputs.dtype)
        return result if self.bias is None else result + self.bias

    def weights(self) -> torch.Tensor:
        """The weights that the codes stand for, (D_out, D_in), without the input scale."""
        codes = self._codes().float().unflatten(1, (-1, self.group_size))
        return restore(codes, self.scale.float(), self.zero.float()).to(self.scale.dtype)

    def _codes(self) -> torch.Tensor:
        """(D_out, D_in) codes; out of the kernel's order by multiplying with ones and zeros, which loses nothing."""
        if self.packed is None:
            return _unpair(self.codes)
        ones = torch.eye(self.in_features, dtype=self.scale_and_zero.dtype)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(ones, self.packed, self.group_size, self.scale_and_zero)
        groups = product.T.float().unflatten(1, (-1, self.group_size))
        scale, offset = self.scale_and_zero.float().unbind(-1)
        return ((groups - offset.T[..., None]) / scale.T[..., None] + 8).round().clamp(0, 15).flatten(1).to(torch.uint8)

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
    """What config.json says of such a model: which layers, in what groups, whether inputs are scaled, by which method."""

    group_size: int = 64
    scaled_inputs: bool = False
    layers: tuple[str, ...] = ()
    made_by: str = "rtn"
    quant_method: str = METHOD


@register_quantizer(METHOD)
class Int4Quantizer(HfQuantizer):
    """Puts `Int4Linear` where the config says, before transformers reads the weights."""

    requires_calibration = True  # a file in this format comes from `quantize`, never from loading with this config

    def _process_model_before_weight_loading(self, model, **kwargs):
        config = self.quantization_config
        for name in config.layers:
            old = model.get_submodule(name)
            new = Int4Linear(old.in_features, old.out_features, group_size=config.group_size, bias=old.bias is not None,
                             scaled_inputs=config.scaled_inputs, dtype=model.config.dtype)
            model.set_submodule(name, new.to("meta"))
        return model

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in model.modules():
            if isinstance(module, Int4Linear):
                module.for_kernel()
        return model

    def is_serializable(self):
        """`save_pretrained` works."""
        return True

    @property
    def is_trainable(self):
        """Adapters beside it could be; the products here keep no gradient for their inputs."""
        return False


def replace_layers(model, layers: dict[str, Int4Linear], made_by: str):
    """Put the 4-bit layers into the model and note the format in its config, so that it can be saved."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    first = next(iter(layers.values()))
    config = Int4Config(group_size=first.group_size, scaled_inputs=first.input_scale is not None, layers=tuple(layers),
                        made_by=made_by)
    model.config.quantization_config, model.hf_quantizer = config, Int4Quantizer(config, pre_quantized=True)
    model.is_quantized, model.quantization_method = True, METHOD
    return model
