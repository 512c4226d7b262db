"""Operations and bytes counted by hand, and the limits that follow from them."""
import pytest

from course_lib.inference import benchmark, roofline
from course_lib.inference.roofline import Phase, Roofline
from course_lib.models import memory

# 100 bytes and 1,000 operations a second: the ridge is at 10
TOY = benchmark.Device("toy", 1e9, 100.0, 1000.0, "", "")
# of the tiny model: q and o 64 x 64, k and v 32 x 64, three of the feed-forward block 128 x 64, in two layers
LAYERS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
NORMS = 5 * 64


@pytest.fixture
def config(tiny_folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_folder)


def decode_steps(model, precision, **sizes):
    return roofline.roofline(model, precision, prompts=(), device=TOY, **sizes).phases


def test_a_decode_step_counted_by_hand(config):
    head = config.vocab_size * 64
    for batch, context in ((1, 10), (3, 50)):
        phase, = decode_steps(config, "fp32", batches=(batch,), context=context)
        assert (phase.kind, phase.size, phase.tokens) == ("decode", batch, batch)
        # in attention two layers, 4 heads of 16
        assert phase.operations == batch * (2 * (LAYERS + head) + 2 * 4 * 64 * context)
        assert phase.bytes == 4 * (LAYERS + head + NORMS) + batch * 2 * 2 * 32 * context * 4


def test_a_prefill_counted_by_hand(config):
    head = config.vocab_size * 64
    phase, = roofline.roofline(config, "bf16", prompts=(7,), batches=(), device=TOY).phases
    assert (phase.kind, phase.size, phase.tokens) == ("prefill", 7, 7)
    # the head for the last token only; the first token attends to one key, the seventh to seven
    assert phase.operations == 2 * (7 * LAYERS + head) + 2 * 4 * 64 * (1 + 2 + 3 + 4 + 5 + 6 + 7)
    assert phase.bytes == 2 * (LAYERS + head + NORMS) + 2 * 2 * 32 * 7 * 2


def test_the_head_counts_once_tied_or_not_and_the_lookup_never(config):
    tied = roofline.roofline(config, "fp32", device=TOY)
    config.tie_word_embeddings = False
    assert roofline.roofline(config, "fp32", device=TOY) == tied


def test_a_sliding_window_hides_what_lies_before_it():
    from course_lib.models import catalog

    model = "google/gemma-2-2b"
    config = catalog.config(model)
    short, long = (decode_steps(model, "bf16", batches=(1,), context=context)[0] for context in (4096, 8192))
    queries = config.num_attention_heads * config.head_dim
    seeing_all = config.num_hidden_layers // 2  # every second layer
    assert long.operations - short.operations == 4 * queries * 4096 * seeing_all
    cache = [memory.kv_cache_bytes(config, context) for context in (4096, 8192)]
    assert long.bytes - short.bytes == cache[1] - cache[0]


def test_quantized_weights_are_fewer_bytes_for_the_same_operations(config):
    full, packed = (decode_steps(config, precision)[-1] for precision in ("bf16", "nf4"))
    assert packed.operations == full.operations and packed.bytes < full.bytes


def test_the_roof_is_the_lower_of_two_limits():
    roof = Roofline(TOY)
    assert roof.ridge == 10
    assert [roof.attainable(intensity) for intensity in (1, 10, 50)] == [100, 1000, 1000]
    slow = Phase("decode", 1, 1, 200, 100)
    fast = Phase("prefill", 5, 5, 5000, 100)
    assert roof.tokens_per_second(slow) == 1  # 100 bytes take a second, 200 operations a fifth of it
    assert roof.tokens_per_second(fast) == 1  # 5,000 operations take five seconds


def test_more_tokens_a_pass_raise_the_intensity_until_the_cache_counts(config):
    every = roofline.roofline(config, "fp32", prompts=(1, 16, 128), batches=(1, 8, 64), context=8, device=TOY)
    for phases in (every.phases[:3], every.phases[3:]):
        intensities = [phase.intensity for phase in phases]
        assert intensities == sorted(intensities) and intensities[-1] > 3 * intensities[0]
    few, many = decode_steps(config, "fp32", batches=(64, 4096), context=200)
    assert many.intensity < 1.5 * few.intensity  # each sequence brings keys and values of its own


def test_it_is_the_rule_of_thumb_with_the_pieces():
    """A single sequence with next to no context: bytes of weights over bandwidth."""
    from course_lib.models import catalog

    model = "smollm2-135m"
    device = benchmark.devices()["t4"]
    roof = roofline.roofline(model, "fp32", prompts=(), batches=(1,), context=1, device=device)
    rule = benchmark.predict(catalog.count_parameters(model), catalog.weight_bytes(model, "fp32"), device)
    assert 1 / roof.tokens_per_second(roof.phases[0]) == pytest.approx(rule.per_token, rel=0.001)


def test_this_machine_has_a_ridge():
    roof = roofline.roofline(precision="fp32")
    assert roof.phases == () and 0.1 < roof.ridge < 10_000
    assert roof.device == benchmark.this_machine()  # measured once


@pytest.mark.parametrize("options, words", [
    ({"precision": "fp7"}, "precision is 'fp7'"), ({"prompts": (4, 0)}, "prompts is 0"),
    ({"batches": (-1,)}, "batches is -1"), ({"context": 0}, "context is 0"),
])
def test_impossible_requests_are_named(config, options, words):
    with pytest.raises(ValueError, match=words):
        roofline.roofline(config, device=TOY, **options)


def test_a_device_without_a_rate_has_no_roof():
    with pytest.raises(ValueError, match="no published FLOP rate"):
        roofline.roofline(device=benchmark.devices()["phone"])
