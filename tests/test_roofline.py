"""Operations and bytes counted by hand, and the limits that follow from them."""
import pytest

from course_lib import decode, memory, roofline
from course_lib.roofline import Phase, Roofline

TOY = decode.Device("toy", 1e9, 100.0, 1000.0, "", "")  # 100 bytes and 1,000 operations a second: the ridge is at 10
# of the tiny model: q and o 64 x 64, k and v 32 x 64, three of the feed-forward block 128 x 64, in two layers
LAYERS = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
NORMS = 5 * 64


@pytest.fixture
def config(tiny_folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_folder)


def test_a_decode_step_counted_by_hand(config):
    head = config.vocab_size * 64
    for batch, context in ((1, 10), (3, 50)):
        phase, = roofline.roofline(config, "fp32", prompts=(), batches=(batch,), context=context, device=TOY).phases
        assert (phase.kind, phase.size, phase.tokens) == ("decode", batch, batch)
        assert phase.operations == batch * (2 * (LAYERS + head) + 2 * 4 * 64 * context)  # two layers, 4 heads of 16
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
    from course_lib import catalog

    model = "google/gemma-2-2b"
    config = catalog.config(model)
    short, long = (roofline.roofline(model, "bf16", prompts=(), batches=(1,), context=context, device=TOY).phases[0]
                   for context in (4096, 8192))
    layers, queries = config.num_hidden_layers, config.num_attention_heads * config.head_dim
    assert long.operations - short.operations == 4 * queries * 4096 * layers // 2  # every second layer sees all
    assert long.bytes - short.bytes == memory.kv_cache_bytes(config, 8192) - memory.kv_cache_bytes(config, 4096)


def test_quantized_weights_are_fewer_bytes_for_the_same_operations(config):
    full, packed = (roofline.roofline(config, precision, device=TOY).phases[-1] for precision in ("bf16", "nf4"))
    assert packed.operations == full.operations and packed.bytes < full.bytes


def test_the_roof_is_the_lower_of_two_limits():
    roof = Roofline(TOY)
    assert roof.ridge == 10
    assert [roof.attainable(intensity) for intensity in (1, 10, 50)] == [100, 1000, 1000]
    slow, fast = Phase("decode", 1, 1, 200, 100), Phase("prefill", 5, 5, 5000, 100)
    assert roof.tokens_per_second(slow) == 1  # 100 bytes take a second, 200 operations a fifth of it
    assert roof.tokens_per_second(fast) == 1  # 5,000 operations take five seconds


def test_more_tokens_a_pass_raise_the_intensity_until_the_cache_counts(config):
    roof = roofline.roofline(config, "fp32", prompts=(1, 16, 128), batches=(1, 8, 64), context=8, device=TOY)
    for phases in (roof.phases[:3], roof.phases[3:]):
        intensities = [phase.intensity for phase in phases]
        assert intensities == sorted(intensities) and intensities[-1] > 3 * intensities[0]
    crowded = roofline.roofline(config, "fp32", prompts=(), batches=(64, 4096), context=200, device=TOY).phases
    assert crowded[1].intensity < 1.5 * crowded[0].intensity  # each sequence brings keys and values of its own


def test_it_is_the_rule_of_thumb_with_the_pieces():
    """A single sequence with next to no context: bytes of weights over bandwidth."""
    from course_lib import catalog

    model = "smollm2-135m"
    roof = roofline.roofline(model, "fp32", prompts=(), batches=(1,), context=1, device=decode.devices()["t4"])
    rule = decode.predict(catalog.count_parameters(model), catalog.weight_bytes(model, "fp32"), decode.devices()["t4"])
    assert 1 / roof.tokens_per_second(roof.phases[0]) == pytest.approx(rule.per_token, rel=0.001)


def test_this_machine_has_a_ridge():
    roof = decode.roofline(precision="fp32")
    assert roof.phases == () and 0.1 < roof.ridge < 10_000
    assert roof.device == decode.this_machine()  # measured once


@pytest.mark.parametrize("options, words", [
    ({"precision": "fp7"}, "precision is 'fp7'"), ({"prompts": (4, 0)}, "prompts is 0"), ({"batches": (-1,)}, "batches is -1"),
    ({"context": 0}, "context is 0"),
])
def test_impossible_requests_are_named(config, options, words):
    with pytest.raises(ValueError, match=words):
        roofline.roofline(config, device=TOY, **options)


def test_a_device_without_a_rate_has_no_roof():
    with pytest.raises(ValueError, match="no published FLOP rate"):
        roofline.roofline(device=decode.devices()["phone"])
