"""Graders of lesson 08: the first 24 bytes of a GGUF file, a norm folded into a linear layer, layers on two processors."""
from __future__ import annotations

import math
import struct

from .grading import Hint, call, grader, shown


@grader("08.1")
def _gguf_head(answer: object) -> Hint:
    """(version, tensors, entries) from the first bytes; a ValueError for other bytes, or too few."""
    for numbers in ((3, 272, 30), (2, 1, 0), (3, 2**33 + 5, 2**16 + 3)):
        data = b"GGUF" + struct.pack("<IQQ", *numbers)
        for given in (data, data + b"general.architecture"):
            result, hint = call(answer, given)
            if hint:
                return hint
            if not isinstance(result, (list, tuple)) or len(result) != 3 or not all(type(one) is int for one in result):
                return "check.08.1.shape", {}
            if tuple(result) != numbers:
                return "check.08.1.values", {"result": shown((tuple(result),)), "right": shown((numbers,))}
    for key, given in (("magic", b"GGML" + data[4:]), ("magic", b"\x80\x02}q\x00" + bytes(40)), ("magic", data[4:] + b"GGUF"),
                       ("short", data[:23]), ("short", b"")):
        try:
            answer(given)
        except ValueError:
            continue
        except Exception as error:  # struct.error, IndexError, …: an error, but not the one that was asked for
            return f"check.08.1.{key}", {"found": type(error).__name__}
        return f"check.08.1.{key}", {"found": "–"}
    return None


@grader("08.2")
def _folded_norm(answer: object) -> Hint:
    """(weight, bias) with the scale and the shift of the norm before the layer in them."""
    import torch

    generator = torch.Generator().manual_seed(8)
    for outputs, inputs in ((1, 2), (3, 5), (6, 6)):
        weight, bias, scale, shift, x = (torch.randn(*size, generator=generator) for size in (
            (outputs, inputs), (outputs,), (inputs,), (inputs,), (7, inputs)))
        arguments = [tensor.clone() for tensor in (weight, bias, scale, shift)]
        result, hint = call(answer, *arguments)
        if hint:
            return hint
        if not isinstance(result, (list, tuple)) or len(result) != 2 or not all(
                isinstance(one, torch.Tensor) and one.is_floating_point() for one in result) or [
                tuple(one.shape) for one in result] != [(outputs, inputs), (outputs,)]:
            return "check.08.2.shape", {"outputs": outputs, "inputs": inputs}
        new_weight, new_bias = (one.detach().float() for one in result)
        wanted = (x * scale + shift) @ weight.T + bias
        if torch.allclose(x @ new_weight.T + new_bias, wanted, atol=1e-4):
            continue
        if not torch.allclose(new_weight, weight * scale, atol=1e-4):
            return "check.08.2.scale", {"outputs": outputs, "inputs": inputs}
        return "check.08.2.shift", {}
    return None


@grader("08.3")
def _layers_on_two_processors(answer: object) -> Hint:
    """(layers on the GPU, tokens a second); layers are taken from the last one backwards while they fit."""
    for arguments in (([2.0, 2.0, 2.0, 2.0], 5.0, 200.0, 50.0), ([1.0, 2.0, 3.0], 4.0, 300.0, 30.0),
                      ([0.5] * 8, 2.0, 400.0, 80.0), ([3.0, 1.0, 1.0], 9.0, 100.0, 20.0), ([1.0, 4.0], 3.0, 500.0, 25.0),
                      ([1.0, 1.0, 3.0, 1.0], 2.5, 90.0, 9.0)):
        layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth = arguments
        result, hint = call(answer, list(layer_gb), memory_gb, gpu_bandwidth, cpu_bandwidth)
        if hint:
            return hint
        if not isinstance(result, (list, tuple)) or len(result) != 2 or type(result[0]) is not int or isinstance(
                result[1], bool) or not isinstance(result[1], (int, float)):
            return "check.08.3.shape", {}
        count = 0
        while count < len(layer_gb) and sum(layer_gb[len(layer_gb) - count - 1:]) <= memory_gb:
            count += 1
        if result[0] != count:
            return "check.08.3.count", {"arguments": shown(arguments), "result": result[0]}
        there = len(layer_gb) - count
        rate = 1 / (sum(layer_gb[there:]) / gpu_bandwidth + sum(layer_gb[:there]) / cpu_bandwidth)
        if not math.isclose(result[1], rate, rel_tol=1e-6):
            return "check.08.3.rate", {"arguments": shown(arguments), "result": shown((result[1],))}
    return None
