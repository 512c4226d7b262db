"""Answers to the exercises of lesson 08."""
import torch


def head(data, *, order="little", magic=True, length=True, start=4):
    """Sums of bytes instead of the reference's struct."""
    if magic and bytes(data[:4]) != b"GGUF":
        raise ValueError("no GGUF")
    if length and len(data) < 24:
        raise ValueError("too short")
    return tuple(int.from_bytes(data[place:place + size], order) for place, size in (
        (start, 4), (start + 4, 8), (start + 12, 8)))


def indexed_error(data):
    if len(data) < 24:
        raise IndexError("too short")
    return head(data)


def asserted(data):
    assert data[:4] == b"GGUF"
    return head(data)


def folded(weight, bias, scale, shift):
    """Through what the layer answers to unit vectors, unlike the reference."""
    def layer(x):
        return torch.nn.functional.linear(x * scale + shift, weight, bias)

    zero = layer(torch.zeros(len(scale)))
    return torch.stack([layer(unit) - zero for unit in torch.eye(len(scale))], dim=1), zero


def split(layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth, *, last=True, strict=False, skip=False):
    order = list(reversed(layer_gb)) if last else list(layer_gb)
    used, count, left = 0.0, 0, 0.0
    for size in order:
        fits = used + size < memory_gb if strict else used + size <= memory_gb
        if fits and (skip or not left):
            used, count = used + size, count + 1
        else:
            left += size
    return count, 1 / (used / gpu_bandwidth + left / cpu_bandwidth)


def mean_speed(layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth):
    count, _ = split(layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth)
    share = count / len(layer_gb)
    return count, (share * gpu_bandwidth + (1 - share) * cpu_bandwidth) / sum(layer_gb)


def seconds(*arguments):
    count, rate = split(*arguments)
    return count, 1 / rate


def slower_alone(layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth):
    count, _ = split(layer_gb, memory_gb, gpu_bandwidth, cpu_bandwidth)
    left = sum(layer_gb[:len(layer_gb) - count])
    return count, cpu_bandwidth / left if left else gpu_bandwidth / sum(layer_gb)


RIGHT = [
    ("08.1", head),
    ("08.1", lambda data: list(head(data))),
    ("08.2", folded),
    ("08.2", lambda weight, bias, scale, shift: list(folded(weight, bias, scale, shift))),
    ("08.3", split),
    ("08.3", lambda *arguments: list(split(*arguments))),
]
WRONG = [
    ("08.1", lambda data: head(data, order="big"), "check.08.1.values"),
    ("08.1", lambda data: head(data, start=0), "check.08.1.values"),
    ("08.1", lambda data: (3, 272, 30), "check.08.1.values"),
    ("08.1", lambda data: head(data)[1:], "check.08.1.shape"),
    ("08.1", lambda data: head(data, magic=False), "check.08.1.magic"),
    ("08.1", asserted, "check.08.1.magic"),
    ("08.1", lambda data: head(data, length=False), "check.08.1.short"),
    ("08.1", indexed_error, "check.08.1.short"),
    ("08.2", lambda weight, bias, scale, shift: weight, "check.08.2.shape"),
    ("08.2", lambda weight, bias, scale, shift: (weight @ torch.diag(scale), bias[None]), "check.08.2.shape"),
    ("08.2", lambda weight, bias, scale, shift: (weight.T * scale[:, None], bias), "check.08.2.shape"),
    ("08.2", lambda weight, bias, scale, shift: (weight, weight @ shift + bias), "check.08.2.scale"),
    ("08.2", lambda weight, bias, scale, shift: (weight * (1 + scale), weight @ shift + bias),
     "check.08.2.scale"),
    ("08.2", lambda weight, bias, scale, shift: (weight * scale, bias), "check.08.2.shift"),
    ("08.2", lambda weight, bias, scale, shift: (weight * scale, (weight * scale) @ shift + bias),
     "check.08.2.shift"),
    ("08.2", lambda weight, bias, scale, shift: (weight * scale, weight @ shift), "check.08.2.shift"),
    ("08.3", lambda *arguments: split(*arguments)[0], "check.08.3.shape"),
    ("08.3", lambda *arguments: split(*arguments)[::-1], "check.08.3.shape"),
    ("08.3", lambda *arguments: split(*arguments, last=False), "check.08.3.count"),
    ("08.3", lambda *arguments: split(*arguments, strict=True), "check.08.3.count"),
    ("08.3", lambda *arguments: split(*arguments, skip=True), "check.08.3.count"),
    ("08.3", mean_speed, "check.08.3.rate"),
    ("08.3", seconds, "check.08.3.rate"),
    ("08.3", slower_alone, "check.08.3.rate"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"unpack|from_bytes|<I|\* scale|@ shift|1 /|reversed"
