"""A context computed once gives the harness's own scores, in its order."""
import pytest
import torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from course_lib.shared_context import SharedContextLM  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT = "Question: Which unit measures resistance?\nAnswer:"


def scores(kind, tiny, pairs):
    model, tokenizer = tiny
    wrapped = kind(pretrained=model, tokenizer=tokenizer, batch_size=4)
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return wrapped.loglikelihood(requests, disable_tqdm=True)


@pytest.mark.parametrize("pairs", [
    [(CONTEXT, " Ohm"), (CONTEXT, " Volt"), (CONTEXT, " Watt"), (CONTEXT, " Ampere")],
    [(CONTEXT, "A"), (CONTEXT, "B"), (CONTEXT, "A")],  # a token each
    [("Is it?", " yes"), (CONTEXT, " Ohm"), ("Is it?", " no"), ("Alone.", " So"), (CONTEXT, " V")],  # mixed, out of order
    [("물은 섭씨", " 100도"), ("물은 섭씨", " 0도에서")],
    [("long " * 60, " one"), ("long " * 60, " another")],  # more than the model's 256 tokens
    [("", "no context"), ("", "none")],
], ids=["choices", "letters", "mixed", "korean", "too long", "empty"])
def test_scores_are_the_harnesss(pairs, tiny):
    expected, found = scores(HFLM, tiny, pairs), scores(SharedContextLM, tiny, pairs)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_what_greedy_decoding_writes_is_marked(tiny):
    model, tokenizer = tiny
    context = tokenizer(CONTEXT)["input_ids"]
    ids = torch.tensor([context])
    for _ in range(3):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    written = ids[0, -3:].tolist()
    other = [*written[:2], (written[2] + 1) % 256]
    requests = [((CONTEXT, ""), context, choice) for choice in (written, other)]  # tokens: they need be no text
    wrapped = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    assert [greedy for _, greedy in wrapped._loglikelihood_tokens(requests, disable_tqdm=True)] == [True, False]


def test_a_shared_context_runs_once(tiny, monkeypatch):
    model, _ = tiny
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **options: (
        seen.append((args[0] if args else options["input_ids"]).numel()), forward(*args, **options))[1])
    scores(SharedContextLM, tiny, [(CONTEXT, " Ohm"), (CONTEXT, " Volt"), (CONTEXT, " Watt")])
    context = len(CONTEXT.encode())  # the tiny tokenizer is one of bytes
    assert seen == [context, 3 * len("Volt")]  # without the last token of each choice


def test_batches_hold_questions(tiny, monkeypatch):
    """Ten questions of two choices, at four a batch: three runs, in which contexts of different lengths stay apart."""
    model, _ = tiny
    batches = []
    score = SharedContextLM._score
    monkeypatch.setattr(SharedContextLM, "_score", lambda self, contexts, choices: (
        batches.append(len(contexts)), score(self, contexts, choices))[1])
    pairs = [(f"{'How ' * index}many?", choice) for index in range(10) for choice in (" one", " eleven")]
    assert [value for value, _ in scores(SharedContextLM, tiny, pairs)] == pytest.approx(
        [value for value, _ in scores(HFLM, tiny, pairs)], rel=1e-4)
    assert batches == [4, 4, 2]
