"""Predicted and measured speed."""
import mmap
import time

import pytest

from course_lib import runtime
from course_lib.inference import benchmark

T4 = benchmark.Device("T4", 16e9, 320e9, 65e12, "", "")


def test_the_prediction_is_arithmetic_before_and_bandwidth_after_the_first_token():
    latency = benchmark.predict(7_000_000_000, 14e9, T4, prompt_tokens=1000)
    assert latency.first_token == pytest.approx(2 * 7e9 * 1000 / 65e12)
    assert latency.per_token == pytest.approx(14 / 320)


def test_a_short_prompt_still_reads_every_weight_once():
    latency = benchmark.predict(7_000_000_000, 14e9, T4, prompt_tokens=1)
    assert latency.first_token == latency.per_token


def test_an_unknown_flop_rate_leaves_the_first_token_open():
    assert benchmark.predict(10**9, 2e9, benchmark.devices()["phone"]).first_token is None


@pytest.mark.parametrize("arguments, words", [((0, 1e9), "parameters is 0"), ((10, 0), "weight_bytes is 0"),
                                              ((10, 10, T4, 0), "prompt_tokens is 0")])
def test_impossible_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        benchmark.predict(*(arguments if len(arguments) > 2 else (*arguments, T4)))


def test_the_price_of_a_million_tokens():
    assert benchmark.cost_per_million_tokens(0.0036, 2.0) == pytest.approx(2.0)  # they take an hour
    with pytest.raises(ValueError, match="price_per_hour -1"):
        benchmark.cost_per_million_tokens(0.1, -1)


def test_devices_have_sources_and_names_in_both_languages():
    english = benchmark.devices()
    runtime.set_language("ko")
    for key, device in benchmark.devices().items():
        assert device.url.startswith("https://") and device.source
        assert device.bandwidth > 1e10 and device.memory > 1e9
        assert (device.memory, device.bandwidth) == (english[key].memory, english[key].bandwidth)
    assert benchmark.devices()["phone"].name != english["phone"].name


def test_this_machine_is_plausible():
    english = benchmark.this_machine()
    assert 1e9 < english.bandwidth < 1e13 and 1e9 < english.flops < 1e16 and english.memory > 1e9
    runtime.set_language("ko")
    korean = benchmark.this_machine("float32")
    assert korean.name == "이 컴퓨터" and korean.bandwidth == english.bandwidth  # measured once, named anew


def test_a_benchmark_makes_exactly_the_tokens_it_says(tiny):
    result = benchmark.benchmark(*tiny, "hello", new_tokens=5, runs=2)
    # a token each
    prompt = ["<|im_start|>", *"user\nhello", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    assert (result.new_tokens, result.prompt_tokens) == (5, len(prompt))
    assert result.first_token > 0 and result.tokens_per_second > 0 and result.tokens_per_second_spread >= 0
    assert result.peak_memory >= 0


class Clockwork:
    """A model of some other runtime: by its own clock the first token takes 2 seconds, each other one 0.5."""

    def __init__(self, held=0, missing=0):
        self.held = held
        self.missing = missing
        self.calls = []

    def timed(self, prompt, new_tokens):
        self.calls.append((prompt, new_tokens))
        with mmap.mmap(-1, self.held + 1) as pages:  # not from the heap, which may keep what others freed
            for _ in range(self.held // 2**20):
                pages.write(b"x" * 2**20)  # a page is there once it is written to
            time.sleep(0.02)
        return [100.0, *(102 + 0.5 * token for token in range(new_tokens - self.missing))]


def test_any_runtime_that_times_its_tokens_gives_the_same_figures():
    model = Clockwork()
    result = benchmark.benchmark(model, prompt="hello", new_tokens=9, runs=3)
    assert model.calls == [("hello", 9)] * 4  # one warms up
    assert (result.first_token, result.tokens_per_second) == (2.0, 2.0)
    assert (result.first_token_spread, result.tokens_per_second_spread) == (0, 0)
    assert (result.prompt_tokens, result.new_tokens) == (None, 9)


def test_peak_memory_is_what_a_run_adds():
    small, large = (benchmark.benchmark(Clockwork(held), runs=1).peak_memory for held in (0, 100 * 2**20))
    assert small < 50 * 2**20 and 90 * 2**20 < large < 150 * 2**20


def test_a_runtime_that_stops_early_and_a_model_without_tokenizer_are_refused(tiny):
    with pytest.raises(ValueError, match="model timed 30 tokens where new_tokens is 32"):
        benchmark.benchmark(Clockwork(missing=2))
    with pytest.raises(ValueError, match="tokenizer is missing"):
        benchmark.benchmark(tiny[0])


def test_attention_says_why_not_in_both_languages(monkeypatch):
    import torch

    reasons = benchmark.available_attention("cpu")
    assert list(reasons) == ["eager", "sdpa", "flash_attention_2"]
    assert reasons["eager"] is reasons["sdpa"] is None
    assert reasons["flash_attention_2"] == "needs an NVIDIA GPU"
    runtime.set_language("ko")
    assert benchmark.available_attention("cpu")["flash_attention_2"] == "NVIDIA GPU가 필요합니다"
    runtime.set_language("en")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    for capability, precision, reason in (((7, 5), "fp16", "this one has 7.5"), ((8, 0), "fp32", "16-bit"),
                                          ((9, 0), "bf16", "package flash-attn")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, version=capability: version)
        assert reason in benchmark.available_attention("cuda", precision)["flash_attention_2"]
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    assert benchmark.available_attention("cuda", "bf16")["flash_attention_2"] is None


@pytest.mark.parametrize("arguments", [{"new_tokens": 1}, {"runs": 0}])
def test_a_benchmark_of_nothing_is_refused(tiny, arguments):
    with pytest.raises(ValueError, match="must be at least 2 and 1"):
        benchmark.benchmark(*tiny, **arguments)
