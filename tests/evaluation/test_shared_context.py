"""A context computed once gives the harness's own scores, in its order."""
import pytest
import torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from course_lib.evaluation.shared_context import SharedContextLM

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
    # mixed, out of order
    [("Is it?", " yes"), (CONTEXT, " Ohm"), ("Is it?", " no"), ("Alone.", " So"), (CONTEXT, " V")],
    [("물은 섭씨", " 100도"), ("물은 섭씨", " 0도에서")],
    [("long " * 60, " one"), ("long " * 60, " another")],  # more than the model's 256 tokens
    [("", "no context"), ("", "none")],
], ids=["choices", "letters", "mixed", "korean", "too long", "empty"])
def test_scores_are_the_harnesss(pairs, tiny):
    ours = scores(SharedContextLM, tiny, pairs)
    theirs = scores(HFLM, tiny, pairs)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-4)


def test_what_greedy_decoding_writes_is_marked(tiny):
    model, tokenizer = tiny
    context = tokenizer(CONTEXT)["input_ids"]
    ids = torch.tensor([context])
    for _ in range(3):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    written = ids[0, -3:].tolist()
    other = [*written[:2], (written[2] + 1) % 256]
    # tokens, which need be no text
    requests = [((CONTEXT, ""), context, choice) for choice in (written, other)]
    wrapped = SharedContextLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    scored = wrapped._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in scored] == [True, False]


def test_a_shared_context_runs_once(tiny, monkeypatch):
    sizes = []
    forward = tiny[0].forward

    def noting(ids, **options):
        sizes.append(ids.numel())
        return forward(ids, **options)

    monkeypatch.setattr(tiny[0], "forward", noting)
    scores(SharedContextLM, tiny, [(CONTEXT, " Ohm"), (CONTEXT, " Volt"), (CONTEXT, " Watt")])
    context = len(CONTEXT.encode())  # the tiny tokenizer is one of bytes
    assert sizes == [context, 3 * len("Volt")]  # without the last token of each choice


def test_batches_hold_questions(tiny, monkeypatch):
    """Ten questions of two choices, four a batch: three runs, in which different contexts stay apart."""
    batches = []
    score = SharedContextLM._score

    def noting(self, contexts, choices):
        batches.append(len(contexts))
        return score(self, contexts, choices)

    monkeypatch.setattr(SharedContextLM, "_score", noting)
    pairs = [(f"{'How ' * index}many?", choice) for index in range(10) for choice in (" one", " eleven")]
    assert [value for value, _ in scores(SharedContextLM, tiny, pairs)] == pytest.approx(
        [value for value, _ in scores(HFLM, tiny, pairs)], rel=1e-4)
    assert batches == [4, 4, 2]
