"""The rule against known distributions, the procedure against known tables, greedy text against generate."""
import copy
from types import SimpleNamespace

import pytest
import torch

from course_lib.inference import speculative
from course_lib.inference.speculative import (
    SpeculativeStats,
    SpeculativeStep,
    expected_speedup,
    expected_tokens_per_pass,
    verify,
)
from course_lib.training import students


@pytest.fixture(scope="module", autouse=True)
def a_single_thread():
    """For the real model too: one token at a time gives a second thread little to do, and long waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distributions(*shape, seed=0, spread=1.5):
    return torch.randn(*shape, generator=seeded(seed)).mul(spread).softmax(-1)


def chi_square_p(counts, expected):
    """How likely counts at least as far from the expected ones are, by Pearson's chi-square test."""
    statistic = ((counts - expected) ** 2 / expected).double().sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


def assert_drawn_from(counts, p):
    """Counts against probabilities, row by row: a total variation below 0.02 in all, a chi-square test of
    each row that does not reject at 1 %, nothing where p is 0.
    """
    expected = counts.sum(-1, keepdim=True) * p
    assert 0.5 * (counts - expected).abs().sum() / counts.sum() < 0.02
    for row, wanted in zip(counts, expected, strict=True):
        assert row[wanted == 0].sum() == 0
        assert chi_square_p(row[wanted > 0], wanted[wanted > 0]) > 0.01


class Table(torch.nn.Module):
    """A model whose next token depends on the last one alone, token i: its distribution is `table[i]`."""

    device = torch.device("cpu")

    def __init__(self, table):
        from transformers import LlamaConfig

        super().__init__()
        self.logits = table.log()
        self.config = LlamaConfig(vocab_size=table.shape[1], num_hidden_layers=1)
        self.generation_config = SimpleNamespace(eos_token_id=None)

    def forward(self, input_ids, past_key_values, use_cache, logits_to_keep):
        return SimpleNamespace(logits=self.logits[input_ids[:, -logits_to_keep:]])


def run(target, draft, *prompt, **options):
    return speculative.speculative_generate(target, draft, torch.tensor([prompt or (0,)]), **options)


# --- the rule -------------------------------------------------------------------------------------

def test_chi_square_knows_its_table():
    """3.841 is the 5 % point with one degree of freedom, 11.345 the 1 % point with three."""
    for statistic, freedom, p in ((3.841, 1, 0.05), (11.345, 3, 0.01)):
        expected = torch.full((freedom + 1,), 1e6)
        counts = expected.clone()
        counts[0] += (statistic * 1e6) ** 0.5
        assert chi_square_p(counts, expected) == pytest.approx(p, rel=0.01)


@pytest.mark.parametrize("kind", ["another", "narrow", "wide", "close"])
def test_what_verify_lets_through_is_drawn_from_p(kind):
    p = distributions(2, 6)
    random = seeded(1)
    q = {"another": distributions(1, 6, seed=2), "narrow": torch.tensor([[0, 0.7, 0, 0.3, 0, 0]]),
         "wide": torch.full((1, 6), 1 / 6), "close": (p[:1] + 1e-7).div(1 + 6e-7)}[kind]
    if kind == "wide":
        p[0, 2:4] = 0
        p[0] /= p[0].sum()
    counts = torch.zeros(6)
    for drafted in torch.multinomial(q[0], 20_000, replacement=True, generator=random):
        accepted, token = verify(drafted[None], q, p, random)
        counts[drafted if accepted else token] += 1
    assert_drawn_from(counts[None], p[:1])


def test_the_bonus_token_is_drawn_from_the_last_row_and_the_correction_from_what_is_left():
    random = seeded(2)
    p = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]])
    q = torch.tensor([[1.0, 0, 0, 0]])
    drawn = [verify([0], q, p, random) for _ in range(4000)]
    kept = [token for accepted, token in drawn if accepted]
    assert len(kept) / 4000 == pytest.approx(0.5, abs=0.03)  # min(1, p / q)
    assert kept.count(3) / len(kept) == pytest.approx(0.75, abs=0.03)
    assert {token for accepted, token in drawn if not accepted} == {1}  # max(0, p - q) has nothing else


def test_the_first_rejection_ends_the_row_of_kept_tokens():
    p = torch.eye(5)[[1, 2, 3, 4]]
    assert verify([1, 2, 3], p[:3], p) == (3, 4)
    assert verify([1, 0, 3], torch.eye(5)[[1, 0, 3]], p) == (1, 2)
    assert verify([0, 2, 3], torch.eye(5)[[0, 2, 3]], p) == (0, 1)
    assert verify([], torch.empty(0, 5), p[:1]) == (0, 1)  # nothing drafted: plain decoding


def test_a_difference_that_rounding_swallows_is_drawn_from_p():
    q = torch.tensor([[0.5, 0.5]])
    p = torch.tensor([[0.25, 0.5], [1.0, 0.0]])  # as if rounding had lost a part of p, so that p > q nowhere
    assert {verify([0], q, p, seeded(seed)) for seed in range(200)} == {(1, 0), (0, 0), (0, 1)}


def test_verify_repeats_a_draw_and_takes_tensors():
    q = distributions(3, 6, seed=3)
    p = distributions(4, 6, seed=4)
    tokens = [0, 1, 2]
    drawn = {(verify(tokens, q, p, seeded(seed)), verify(torch.tensor(tokens), q, p, seeded(seed)))
             for seed in range(20)}
    assert all(first == again for first, again in drawn) and len(drawn) > 3


@pytest.mark.parametrize("q, p", [((2, 6), (2, 6)), ((1, 6), (3, 6)), ((2, 5), (3, 6)), ((2, 6), (18,))])
def test_verify_names_shapes_that_do_not_fit(q, p):
    with pytest.raises(ValueError, match=r"2 draft_tokens, q \(.*\) and p \(.*\) don't fit"):
        verify([0, 1], torch.ones(q), torch.ones(p))


def share_kept(steps):
    return sum(step.accepted for step in steps) / sum(len(step.drafted) for step in steps)


# --- the whole procedure, sampled -----------------------------------------------------------------

@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_generated_text_is_distributed_as_the_targets(temperature):
    p = distributions(4, 4, seed=5, spread=0.7)
    target = Table(p)
    draft = Table((p + distributions(4, 4, seed=6)) / 2)
    random = seeded(7)
    counts = torch.zeros(4, 4)
    steps = []
    for start in range(20):
        ids, stats = run(target, draft, start % 4, k=3, temperature=temperature, max_new_tokens=1000,
                         generator=random)
        counts.index_put_((ids[0, :-1], ids[0, 1:]), torch.ones(1000), accumulate=True)
        steps += stats.steps
    assert 0.2 < share_kept(steps) < 0.8  # both ways are gone often
    assert_drawn_from(counts, (p.log() / temperature).softmax(-1))


@pytest.mark.parametrize("k", [1, 4])
def test_theory_predicts_tokens_per_pass_where_every_token_is_as_hard(k):
    p = distributions(1, 6, seed=8)
    q = distributions(1, 6, seed=9)
    _, stats = run(Table(p.repeat(6, 1)), Table(q.repeat(6, 1)), k=k, temperature=1.0, max_new_tokens=4000,
                   generator=seeded(3))
    alpha = float(p.minimum(q).sum())  # corollary 3.6 of the paper
    assert stats.alpha == pytest.approx(alpha, abs=0.03)
    assert stats.tokens_per_pass == pytest.approx(expected_tokens_per_pass(alpha, k), rel=0.03)
    share = share_kept(stats.steps)  # what was drafted behind a rejected token counts as well
    assert share < stats.alpha if k > 1 else share == stats.alpha


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_a_draft_that_is_the_target_is_always_kept(temperature):
    model = Table(distributions(5, 5))
    ids, stats = run(model, model, k=4, temperature=temperature, max_new_tokens=20)
    assert ids.shape == (1, 21) and stats.target_passes == 4
    assert stats.alpha == 1 and stats.accepted == stats.drafted and stats.tokens_per_pass == 5


def test_a_draft_that_says_what_the_target_never_says_is_never_kept():
    low = torch.tensor([[0.5, 0.5, 0, 0]]).repeat(4, 1)
    ids, stats = run(Table(low), Table(low.flip(1)), temperature=1.0, max_new_tokens=30)
    assert stats.accepted == stats.alpha == 0
    assert stats.target_passes == stats.new_tokens == 30 and set(ids[0].tolist()) == {0, 1}


def test_a_low_temperature_comes_close_to_greedy():
    tables = [Table(distributions(6, 6, seed=seed)) for seed in (10, 11)]
    texts = [run(*tables, temperature=temperature, max_new_tokens=40)[0] for temperature in (0.0, 0.01)]
    assert torch.equal(*texts)
    warm, hot = (run(*tables, temperature=temperature, max_new_tokens=400, generator=seeded())[0]
                 for temperature in (0.1, 5.0))
    assert len(warm.unique()) < len(hot.unique()) == 6


def test_a_seed_repeats_a_draw_and_greedy_needs_none():
    tables = [Table(distributions(6, 6, seed=seed)) for seed in (12, 13)]
    before = torch.get_rng_state()
    draws = [run(*tables, temperature=1.0, max_new_tokens=60, generator=seeded(seed))[0].tolist()
             for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    run(*tables, max_new_tokens=60)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    first = run(*tables, temperature=1.0, max_new_tokens=60)[0]
    torch.manual_seed(4)
    assert torch.equal(first, run(*tables, temperature=1.0, max_new_tokens=60)[0])


# --- greedy text ----------------------------------------------------------------------------------

def noisy(model, size=0.006):
    """A copy of a model with noise on its weights: it often says the same, but not always."""
    draft = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += size * torch.randn_like(weight)
    return draft


def another(model):
    """A model of random weights, with one layer and the same vocabulary."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 1
    torch.manual_seed(2)
    return type(model)(config).eval()


def greedy(model, ids, **options):
    return model.generate(ids, do_sample=False, attention_mask=torch.ones_like(ids), pad_token_id=0,
                          **options)


@pytest.mark.parametrize("make", [noisy, another])
def test_greedy_text_is_the_targets_own_on_prompts_of_every_length(tiny, make):
    target = tiny[0]
    draft = make(target)
    random = seeded(3)
    steps = []
    for number in range(24):
        ids = torch.randint(3, target.config.vocab_size, (1, 1 + number % 20), generator=random)
        text, stats = speculative.speculative_generate(target, draft, ids, k=1 + number % 6,
                                                       max_new_tokens=16)
        assert torch.equal(text, greedy(target, ids, max_new_tokens=16))
        steps += stats.steps
    share = share_kept(steps)
    assert 0.2 < share < 0.95 if make is noisy else share < 0.2  # both ways are gone, or the hard one


def test_sliding_windows_are_rolled_back_too():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
                          num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
                          initializer_range=0.6, eos_token_id=1, tie_word_embeddings=False)
    target = Gemma2ForCausalLM(config).eval()
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    for length in (3, 7, 20):
        ids = torch.randint(3, 60, (1, length), generator=seeded(length))
        text, stats = speculative.speculative_generate(target, noisy(target, 0.05), ids, k=3,
                                                       max_new_tokens=40, eos_token_id=())
        assert torch.equal(text, greedy(target, ids, max_new_tokens=40, min_new_tokens=40))
        assert 0 < stats.accepted < stats.drafted


@pytest.mark.parametrize("make", [noisy, another])
def test_exactly_so_many_tokens_come_as_asked(tiny, make):
    draft = make(tiny[0])
    for tokens in (1, 2, 5, 6, 11):
        ids, stats = run(tiny[0], draft, 5, 6, max_new_tokens=tokens, eos_token_id=())
        assert ids.shape == (1, 2 + tokens) and stats.new_tokens == tokens and ids[0, :2].tolist() == [5, 6]


@pytest.mark.parametrize("make", [copy.deepcopy, noisy, another])
def test_text_ends_at_the_first_end_token(tiny, make):
    target = tiny[0]
    draft = make(target)
    whole = greedy(target, torch.tensor([[5, 6, 7]]), max_new_tokens=16)[0, 3:].tolist()
    for end in set(whole):  # wherever it stands: drafted, put right, or one more after all were kept
        ids, stats = run(target, draft, 5, 6, 7, max_new_tokens=16, eos_token_id=end)
        assert ids[0, 3:].tolist() == whole[:whole.index(end) + 1]
        assert stats.new_tokens == whole.index(end) + 1
    target.generation_config.eos_token_id = [whole[9], 258]
    ids, _ = run(target, draft, 5, 6, 7, max_new_tokens=16)
    assert ids[0, 3:].tolist() == whole[:whole.index(whole[9]) + 1]


def test_no_token_is_read_twice(tiny):
    target = tiny[0]
    draft = noisy(target)
    read = {"target": 0, "draft": 0}
    for name, model in (("target", target), ("draft", draft)):
        def count(module, arguments, options, name=name):
            read[name] += options["input_ids"].shape[1]
        model.register_forward_pre_hook(count, with_kwargs=True)
    prompt = torch.arange(3, 53)[None]
    _, stats = speculative.speculative_generate(target, draft, prompt, k=4, max_new_tokens=30,
                                                eos_token_id=())
    # each pass reads its drafted tokens and the one before them, and the first pass the whole prompt
    assert read["target"] == 50 - 1 + stats.target_passes + stats.drafted <= 50 + stats.target_passes * 5
    # the last token drafted is read later, and only where it was kept
    all_kept = sum(step.accepted == len(step.drafted) > 0 for step in stats.steps[:-1])
    assert 50 - 1 + stats.drafted <= read["draft"] <= 50 - 1 + stats.drafted + all_kept


def test_the_ids_can_be_trained_on(tiny):
    ids, _ = speculative.speculative_generate(tiny[0], tiny[0], torch.tensor([[5, 6]]), max_new_tokens=4)
    tiny[0](input_ids=ids, labels=ids).loss.backward()


# --- figures --------------------------------------------------------------------------------------

def test_stats_count_their_steps():
    steps = (((1, 2, 3), 3, 4), ((5, 6, 7), 1, 8), ((9, 2), 2, None))
    stats = SpeculativeStats(tuple(SpeculativeStep(*step) for step in steps), 2.0)
    assert (stats.target_passes, stats.drafted, stats.accepted, stats.new_tokens) == (3, 8, 6, 8)
    assert stats.alpha == 6 / 7  # of the second step's tokens the last was never judged
    assert stats.tokens_per_pass == 8 / 3


def test_steps_make_up_the_text(tiny):
    ids, stats = run(tiny[0], noisy(tiny[0]), 5, 6, max_new_tokens=25)
    tokens = [token for step in stats.steps for token in (*step.drafted[:step.accepted], step.next_token)]
    assert ids[0, 2:].tolist() == [token for token in tokens if token is not None] and stats.seconds > 0


def test_the_two_formulas():
    assert expected_tokens_per_pass(0.8, 4) == pytest.approx((1 - 0.8**5) / (1 - 0.8))
    assert (expected_tokens_per_pass(0, 3), expected_tokens_per_pass(1, 3)) == (1, 4)
    assert expected_speedup(0.8, 4, 0.05) == pytest.approx((1 - 0.8**5) / ((1 - 0.8) * (4 * 0.05 + 1)))
    # a draft as slow as the target costs time
    assert expected_speedup(0.5, 4, 1.0) < 1 < expected_speedup(0.5, 1, 0.1)
    for arguments, words in (((1.2, 4), "acceptance is 1.2"), ((0.5, 0), "k is 0")):
        with pytest.raises(ValueError, match=words):
            expected_tokens_per_pass(*arguments)
    with pytest.raises(ValueError, match="cost_ratio is -1"):
        expected_speedup(0.5, 4, -1)


# --- what is refused ------------------------------------------------------------------------------

@pytest.mark.parametrize("ids, options, words", [
    ([[]], {}, r"input_ids is empty, \(1, 0\)"),
    ([[1, 2], [3, 4]], {}, r"input_ids has the shape \(2, 2\); it must be \(1, T\)"),
    ([1, 2], {}, r"input_ids has the shape \(2,\)"),
    ([[1]], {"k": 0}, "k is 0; it must be at least 1"),
    ([[1]], {"temperature": -0.5}, r"temperature is -0.5; it must be 0 \(greedy\) or above"),
    ([[1]], {"temperature": float("nan")}, "temperature is nan"),
    ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
])
def test_impossible_requests_are_named(ids, options, words):
    model = Table(distributions(5, 5))
    with pytest.raises(ValueError, match=words):
        speculative.speculative_generate(model, model, torch.tensor(ids, dtype=torch.long), **options)


def test_vocabularies_that_differ_are_refused(tiny):
    with pytest.raises(ValueError, match="target predicts 5 tokens and draft 6; they must share a vocab"):
        run(Table(distributions(5, 5)), Table(distributions(6, 6)))
    other = copy.deepcopy(tiny[1])
    other.add_tokens(["word"])
    words = "tokenizers differ: the target's 259 tokens are not the draft's 260"
    with pytest.raises(ValueError, match=words):
        run(tiny[0], tiny[0], tokenizers=(tiny[1], other))


def test_rows_of_padding_behind_one_vocabulary_are_left_out(tiny):
    target, tokenizer = tiny
    draft = noisy(target)
    draft.resize_token_embeddings(320)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match="if only rows of padding differ, hand over both tokenizers"):
        speculative.speculative_generate(target, draft, ids)
    text, stats = speculative.speculative_generate(target, draft, ids, tokenizers=(tokenizer, tokenizer),
                                                   max_new_tokens=20)
    assert torch.equal(text, greedy(target, ids, max_new_tokens=20)) and stats.accepted > 0


# --- the real model, and what transformers itself offers -------------------------------------------

def assert_same_or_tied(model, text, expected):
    """Equal, or parted where the two tokens' logits differ by no more than rounding does in fp32."""
    if torch.equal(text, expected):
        return
    length = int((text[0, :expected.shape[1]] != expected[0, :text.shape[1]]).nonzero()[0])
    with torch.inference_mode():
        logits = model(expected[:, :length]).logits[0, -1]
    gap = float((logits[text[0, length]] - logits[expected[0, length]]).abs())
    assert gap < 1e-3, f"parted at token {length}, where the logits are {gap} apart"


def test_greedy_text_of_the_real_model_is_its_own(real):
    model, tokenizer = real
    draft = students.make_student(model, [layer for layer in range(30) if layer not in (20, 22)])
    steps = []
    for question in ("What is the capital of France?", "Name three fruits.", "Write a haiku."):
        ids = tokenizer.apply_chat_template([{"role": "user", "content": question}], return_tensors="pt",
                                            add_generation_prompt=True, return_dict=True)["input_ids"]
        text, stats = speculative.speculative_generate(model, draft, ids, k=3, max_new_tokens=8)
        assert_same_or_tied(model, text, greedy(model, ids, max_new_tokens=8))
        steps += stats.steps
    assert 0 < share_kept(steps) < 1


def test_transformers_own_ways_are_greedy_too(tiny):
    model, _ = tiny
    ids = torch.randint(3, 250, (1, 12), generator=seeded(5))
    expected = greedy(model, ids, max_new_tokens=16)
    ways = {"assistant_model": noisy(model), "prompt_lookup_num_tokens": 5, "assistant_early_exit": 1}
    for way, value in ways.items():
        assert_same_or_tied(model, greedy(model, ids, max_new_tokens=16, **{way: value}), expected)
    assert model.config.num_hidden_layers == 2  # early exit changes it while it drafts
