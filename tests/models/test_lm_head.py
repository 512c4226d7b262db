"""The fused head against plain logits and autograd: values, gradients, precision, and memory."""
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.models.lm_head import DIVERGENCES, Head, divergence_and_gradient, head_loss
from course_lib.training.distill import divergence_of
from course_lib.training.teacher_store import LiveTarget
from tests.models.heads import Case, H, Largest, V, assert_same, gradients, set_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Blocks of 5 rows in chunks of 2, neither of which divides the rows of a case."""
    set_rows(monkeypatch, 5, 2)


@pytest.mark.parametrize(
    "divergence, tau, alpha",
    [*itertools.product(DIVERGENCES, (0.7, 1.0, 4.0), (0.3, 1.0)), ("forward_kl", 2.0, 0.0)])
def test_value_and_gradients_equal_the_formula_on_full_logits(divergence, tau, alpha):
    for head in ({}, {"bias": False}, {"scale": 0.5}, {"softcap": 2.0}, {"scale": 3.0, "softcap": 4.0}):
        case = Case(**head)
        ours, _, _ = case.fused(tau, alpha=alpha, divergence=divergence)
        theirs = case.plain(tau, alpha, divergence)
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5), head
        assert_same(gradients(ours, case.leaves()), gradients(theirs, case.leaves()))


@pytest.mark.parametrize("block, chunk", [(999, 999), (999, 3), (4, 999), (1, 1)])
def test_the_sizes_of_blocks_and_chunks_change_nothing(block, chunk, monkeypatch):
    case = Case(softcap=4.0)
    theirs = case.plain(2.0, 0.5, "jsd")
    set_rows(monkeypatch, block, chunk)
    ours = case.fused(2.0, alpha=0.5, divergence="jsd")[0]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert_same(gradients(ours, case.leaves()), gradients(theirs, case.leaves()))


@pytest.mark.parametrize("tau, alpha, divergence", [(3.0, 0.25, "forward_kl"), (0.5, 0.9, "jsd")])
def test_the_terms_make_up_the_loss(tau, alpha, divergence):
    case = Case()
    loss, soft, hard = case.fused(tau, alpha=alpha, divergence=divergence)
    assert loss.item() == pytest.approx(alpha * tau**2 * float(soft) + (1 - alpha) * float(hard), rel=1e-6)
    assert float(hard) == pytest.approx(case.plain(tau, 0.0).item(), abs=1e-5)
    assert tau**2 * float(soft) == pytest.approx(case.plain(tau, 1.0, divergence).item(), abs=1e-5)
    assert loss.requires_grad and not soft.requires_grad and not hard.requires_grad


def test_labels_alone_need_no_teacher_and_equal_cross_entropy():
    case = Case(softcap=5.0)
    loss, soft, hard = head_loss(case.hidden[case.keep], case.head(), case.targets[case.keep])
    expected = torch.nn.functional.cross_entropy(case.logits()[case.keep], case.targets[case.keep])
    assert loss.item() == float(hard) == pytest.approx(expected.item(), abs=1e-5) and float(soft) == 0
    assert_same(gradients(loss, case.leaves()), gradients(expected, case.leaves()))


def test_a_scaled_loss_and_a_second_backward_pass():
    case = Case()
    once = gradients(case.fused(alpha=0.5)[0], case.leaves())
    (case.fused(alpha=0.5)[0] * 3).backward()
    assert_same([leaf.grad for leaf in case.leaves()], [3 * grad for grad in once])
    for leaf in case.leaves():
        leaf.grad = None
    loss = case.fused(alpha=0.5)[0]
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same([leaf.grad for leaf in case.leaves()], [2 * grad for grad in once])


def test_num_items_makes_parts_add_up_to_the_whole():
    case = Case()
    rows = case.hidden[case.keep]
    head = case.head()
    targets = case.targets[case.keep]
    whole = gradients(head_loss(rows, head, targets)[0], case.leaves())
    count = torch.tensor(len(targets))  # the Trainer hands out a tensor
    first, _, _ = head_loss(rows[:4], head, targets[:4], num_items=count)
    second, _, _ = head_loss(rows[4:], head, targets[4:], num_items=count)
    assert_same(gradients(first + second, case.leaves()), whole)


def weights_that_got_products(case, **settings):
    """Shapes of the matrix products of a training step."""
    shapes = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out):
                shapes.append(tuple(out.shape))
            return out

    with Products():
        loss = case.fused(**settings)[0]
        if loss.requires_grad:
            loss.backward()
    return set(shapes)


def test_what_is_frozen_costs_no_product():
    case = Case(bias=False)
    case.weight.requires_grad_(False)  # LoRA: the head stays as it is
    shapes = weights_that_got_products(case, alpha=0.5)
    assert case.weight.grad is None and case.hidden.grad is not None and (V, H) not in shapes
    expected = gradients(case.plain(), [case.hidden])
    assert_same([case.hidden.grad], expected)

    case = Case()
    case.hidden.requires_grad_(False)  # only the head learns
    shapes = weights_that_got_products(case, alpha=0.5)
    assert case.hidden.grad is None and all(shape[1] != H or shape == (V, H) for shape in shapes)
    assert_same([case.weight.grad, case.bias.grad], gradients(case.plain(), [case.weight, case.bias]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_only_the_logits_are_computed(mode):
    case = Case()
    expected = case.plain().item()
    with mode():
        assert all(shape[1] == V for shape in weights_that_got_products(case, alpha=0.5))
        loss = case.fused(alpha=0.5)[0]
    assert not loss.requires_grad and loss.item() == pytest.approx(expected, abs=1e-5)


def test_no_rows_give_zero_and_zero_gradients():
    case = Case()
    nothing = torch.empty(0, dtype=torch.long)
    loss, soft, hard = head_loss(case.hidden[:, :0].flatten(0, 1), case.head(), nothing)
    assert loss.item() == float(soft) == float(hard) == 0
    assert all(not grad.any() for grad in gradients(loss, case.leaves()))


def test_a_soft_loss_without_a_teacher_is_an_error():
    case = Case()
    with pytest.raises(ValueError, match=r"alpha is 0\.5, but teacher is None"):
        head_loss(case.hidden[case.keep], case.head(), case.targets[case.keep], alpha=0.5)


# --- precision

def relative(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return max(float((mine.float() - other).norm() / other.norm()) for mine, other in pairs)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.002)], ids=str)
def test_autocast_keeps_masters_and_comes_close(dtype, tolerance):
    case = Case()
    exact = case.fused(2.0, alpha=0.5)[0]
    with torch.autocast("cpu", dtype=dtype):
        loss = case.fused(2.0, alpha=0.5)[0]
    ours = gradients(loss, case.leaves())
    assert loss.dtype == torch.float32 and all(grad.dtype == torch.float32 for grad in ours)
    assert loss.item() == pytest.approx(exact.item(), rel=tolerance)
    assert 0 < relative(ours, gradients(exact, case.leaves())) < tolerance


def test_gradients_have_the_type_of_what_they_belong_to():
    case = Case()
    low = [leaf.detach().bfloat16().requires_grad_() for leaf in case.leaves()]
    loss = head_loss(low[0][case.keep], Head(*low[1:]), case.targets[case.keep])[0]
    ours = gradients(loss, low)
    assert all(grad.dtype == torch.bfloat16 for grad in ours)
    exact = head_loss(case.hidden[case.keep], case.head(), case.targets[case.keep])[0]
    assert 0 < relative(ours, gradients(exact, case.leaves())) < 0.03


@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "fp16 hidden states"])
def test_small_gradients_survive_fp16(whole):
    # (q - t) / 30,000 tokens is below 6e-8, fp16's smallest number above 0, and a GradScaler comes too late
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, H, generator=random)
    weight = 0.1 * torch.randn(500, H, generator=random)
    other = weight + 0.01 * torch.randn(500, H, generator=random)
    targets = torch.zeros(20, dtype=torch.long)

    def grads(kind, scale):
        states = hidden.to(kind if whole else torch.float32)
        leaves = [states.requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
            loss = head_loss(leaves[0], Head(leaves[1]), targets, alpha=1.0, num_items=30_000,
                             teacher=LiveTarget(Head(other), hidden, 1.0))[0]
        return [grad.float() / scale for grad in gradients(loss * scale, leaves)]

    assert relative(grads(torch.float16, 65_536.0), grads(torch.float32, 1.0)) < 0.2


# --- memory

@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_tensor_of_all_logits_is_made(divergence, monkeypatch):
    rows = 300
    vocabulary = 400
    size = 8
    set_rows(monkeypatch, 20, 5, vocabulary)
    hidden = torch.randn(rows, size, requires_grad=True)
    weight = torch.randn(vocabulary, size, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    with Largest() as seen:
        teacher = LiveTarget(Head(torch.randn(vocabulary, size)), hidden.detach(), 2.0)
        loss = head_loss(
            hidden, Head(weight), targets, teacher=teacher, temperature=2.0, alpha=0.5, divergence=divergence
        )[0]
        loss.backward()
    assert seen.numel == 20 * vocabulary, seen.shape  # a block; all logits would be 15 times that


# --- one divergence

@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_and_its_gradient_equal_autograd(kind):
    random = torch.Generator().manual_seed(1)
    z, other = torch.randn(2, 6, 11, generator=random, dtype=torch.float64) * 3
    z.requires_grad_()
    expected = divergence_of(other.log_softmax(-1), z.log_softmax(-1), kind)
    value, grad = divergence_and_gradient(other.log_softmax(-1), z.detach().log_softmax(-1), kind)
    assert_same([value, grad], [expected, *gradients(expected.sum(), [z])], 1e-12)
    log_q = z.detach().log_softmax(-1)
    assert divergence_and_gradient(other.log_softmax(-1), log_q, kind, needs_grad=False)[1] is None


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_tokens_that_the_teacher_rules_out_leave_the_loss_finite(kind):
    log_t = torch.tensor([[0.0, 0.0, float("-inf")]]).log_softmax(-1)
    log_q = torch.tensor([[0.0, 0.0, 0.0]]).log_softmax(-1)
    value, grad = divergence_and_gradient(log_t, log_q, kind)
    assert value.isfinite().all() and grad.isfinite().all()
    assert grad[0, 2] > 0 > grad[0, 0] and abs(float(grad.sum())) < 1e-5  # away from the third token
    if kind == "forward_kl":
        assert float(value) == pytest.approx(torch.tensor(1.5).log().item())
