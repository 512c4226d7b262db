"""Graders of lesson 08: header of a GGUF file, folding a norm, splitting layers over GPU and CPU."""
from __future__ import annotations

import math
import struct

from .cases import are_whole, judged
from .grading import Hint, call, grader, shown


@grader("08.1")
def _gguf_head(answer: object) -> Hint:
    """Expect (version, tensors, metadata entries); a ValueError for a wrong magic or too few bytes."""
    for counts in ((3, 272, 30), (2, 1, 0), (3, 2**33 + 5, 2**16 + 3)):
        data = b"GGUF" + struct.pack("<IQQ", *counts)
        for given in (data, data + b"general.architecture"):
            result, hint = call(answer, given)
            if hint:
                return hint
            if not are_whole(result, 3):
                return "check.08.1.shape", {}
            if tuple(result) != counts:
                return "check.08.1.values", {"result": shown((tuple(result),)), "right": shown((counts,))}
    wrong = [("magic", b"GGML" + data[4:]), ("magic", b"\x80\x02}q\x00" + bytes(40)),
             ("magic", data[4:] + b"GGUF"), ("short", data[:23]), ("short", b"")]
    for key, given in wrong:
        try:
            answer(given)
        except ValueError:
            continue
        except Exception as error:  # struct.error, IndexError, …: the exercise asks for a ValueError
            return f"check.08.1.{key}", {"found": type(error).__name__}
        return f"check.08.1.{key}", {"found": "–"}
    return None


def _layers():
    import torch

    draw = torch.Generator().manual_seed(8)
    shapes = [((rows, columns), (rows,), (columns,), (columns,))
              for rows, columns in ((1, 2), (3, 5), (6, 6))]
    return [tuple(torch.randn(size, generator=draw) for size in sizes) for sizes in shapes]


@judged("08.2", _layers)
def _folded_norm(result, weight, bias, scale, shift):
    """Expect (weight, bias) of the layer with the scale and shift of the preceding norm folded in."""
    import torch

    outputs, inputs = weight.shape
    sizes = {"outputs": outputs, "inputs": inputs}
    if not isinstance(result, (list, tuple)) or len(result) != 2:
        return "check.08.2.shape", sizes
    if not all(isinstance(tensor, torch.Tensor) and tensor.is_floating_point() for tensor in result):
        return "check.08.2.shape", sizes
    if [tuple(tensor.shape) for tensor in result] != [(outputs, inputs), (outputs,)]:
        return "check.08.2.shape", sizes
    new_weight, new_bias = (tensor.detach().float() for tensor in result)
    x = torch.randn(7, inputs, generator=torch.Generator().manual_seed(9))
    if torch.allclose(x @ new_weight.T + new_bias, (x * scale + shift) @ weight.T + bias, atol=1e-4):
        return None
    if not torch.allclose(new_weight, weight * scale, atol=1e-4):
        return "check.08.2.scale", sizes
    return "check.08.2.shift"


@judged("08.3", [
    ([2.0, 2.0, 2.0, 2.0], 5.0, 200.0, 50.0), ([1.0, 2.0, 3.0], 4.0, 300.0, 30.0),
    ([0.5] * 8, 2.0, 400.0, 80.0), ([3.0, 1.0, 1.0], 9.0, 100.0, 20.0),
    ([1.0, 4.0], 3.0, 500.0, 25.0), ([1.0, 1.0, 3.0, 1.0], 2.5, 90.0, 9.0)])
def _layers_on_two_processors(result, layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth):
    """Expect (layers on the GPU, tokens per second); the GPU takes layers from the last one backwards."""
    if not isinstance(result, (list, tuple)) or len(result) != 2:
        return "check.08.3.shape"
    count, rate = result
    if type(count) is not int or isinstance(rate, bool) or not isinstance(rate, (int, float)):
        return "check.08.3.shape"
    first = len(layer_gb)  # index of the first layer on the GPU
    while first and sum(layer_gb[first - 1:]) <= memory_gb:
        first -= 1
    if count != len(layer_gb) - first:
        return "check.08.3.count", {"result": count}
    seconds = sum(layer_gb[first:]) / gpu_bandwidth + sum(layer_gb[:first]) / cpu_bandwidth
    if not math.isclose(rate, 1 / seconds, rel_tol=1e-6):
        return "check.08.3.rate", {"result": shown((rate,))}
    return None
