"""Meters against work whose time and memory are known."""
import mmap
import re
import time

import pytest
import torch

from course_lib.inference import meters


def test_time_is_wall_time_and_the_first_run_does_not_count():
    calls = []

    def work():
        calls.append(None)
        time.sleep(0.5 if len(calls) == 1 else 0.02)

    assert all(0.02 <= spent < 0.4 for spent in meters.timings(work, 3)) and len(calls) == 4
    assert 0.02 <= meters.seconds(work) < 0.4


def test_peak_bytes_counts_what_is_held_at_one_time():
    with meters.peak_bytes() as peak:
        for _ in range(3):
            first = torch.ones(1000, 1000)  # 4 MB, freed when the next one replaces it
            second = first @ first
    assert second.shape == first.shape and 8e6 <= peak.bytes <= 17e6
    with meters.peak_bytes() as peak:
        torch.ones(500, 1000)
    assert peak.bytes == 2_000_000
    with meters.peak_bytes() as peak:
        pass
    assert peak.bytes == 0


def test_peak_bytes_sees_the_backward_pass_and_survives_an_error():
    weight = torch.ones(1000, 1000, requires_grad=True)
    with meters.peak_bytes() as peak:
        (weight @ weight).relu().sum().backward()
    assert 12e6 <= peak.bytes <= 21e6
    with pytest.raises(RuntimeError, match="on purpose"), meters.peak_bytes():
        raise RuntimeError("on purpose")
    with meters.peak_bytes() as peak:
        torch.ones(1000)
    assert peak.bytes == 4000


def test_resident_memory_grows_by_the_pages_that_are_touched():
    size = 100 * 2**20
    before, own = meters.resident_memory()
    with meters.peak_bytes("cpu", resident=True) as peak, mmap.mmap(-1, size) as pages:
        untouched = meters.resident_memory()[0]
        for _ in range(size // 2**20):
            pages.write(b"x" * 2**20)
        resident, anonymous = meters.resident_memory()
        time.sleep(0.02)
    assert untouched - before < 0.2 * size
    assert resident - before == pytest.approx(size, rel=0.2) and peak.bytes == pytest.approx(size, rel=0.2)
    assert meters.resident_memory()[0] < resident - 0.5 * size  # given back
    assert own != own or 0 < own <= before and anonymous <= resident  # NaN where the system does not tell


def test_weights_that_are_shared_count_once(tiny):
    model, _ = tiny
    weights = sum(weight.nbytes for weight in model.parameters())  # tied: the embedding stands there once
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert meters.measured_bytes(model) == pytest.approx(weights + buffers, abs=1000)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    assert meters.measured_bytes(model) >= weights + model.lm_head.weight.nbytes


def test_a_machine_is_named_in_one_line():
    assert re.fullmatch(r".+, \d+ cores, \d+ GiB(, .+)?, \w+, Python 3\.\d+\.\d+\S*, torch \S+, "
                        r"transformers \S+", meters.machine())
