"""The fused head against plain logits and autograd: values, gradients, precision, and the memory that it must not take."""
import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib import fused_loss
from course_lib.distill import distillation_loss, divergence_of
from course_lib.fused_loss import DIVERGENCES, Head, divergence_and_gradient, head_loss, labelled, shifted
from course_lib.teachers import live_target

B, T, V, H = 3, 7, 23, 10


pytestmark = pytest.mark.usefixtures("one_thread")


def set_rows(monkeypatch, block, chunk, vocabulary=V):
    monkeypatch.setitem(fused_loss.BLOCK_BYTES, "cpu", block * vocabulary * 4)
    monkeypatch.setitem(fused_loss.CHUNK_BYTES, "cpu", chunk * vocabulary * 4)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Blocks of 5 rows in chunks of 2, neither of which divides the rows of a case."""
    set_rows(monkeypatch, 5, 2)


class Case:
    """Hidden states, a student's and a teacher's head, and labels with gaps, in fp32."""

    def __init__(self, seed=0, bias=True, scale=1.0, softcap=None):
        random = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(B, T, H, generator=random)
        self.weight, self.teacher_weight = torch.randn(2, V, H, generator=random)
        self.bias = torch.randn(V, generator=random) if bias else None
        self.labels = torch.randint(V, (B, T), generator=random)
        self.labels[torch.rand(B, T, generator=random) < 0.3] = -100
        self.targets = shifted(self.labels)
        self.keep = self.targets != -100
        self.scale, self.softcap = scale, softcap
        for tensor in self.leaves():
            tensor.requires_grad_()

    def leaves(self):
        return [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]

    def head(self):
        return Head(self.weight, self.bias, self.scale, self.softcap)

    def teacher_head(self):
        return Head(self.teacher_weight)

    def logits(self):
        """The student's logits by plain autograd."""
        out = (self.hidden @ self.weight.T + (0 if self.bias is None else self.bias)) * self.scale
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def fused(self, tau=1.0, **settings):
        rows = self.hidden[self.keep]
        target = live_target(self.teacher_head(), rows.detach(), tau)
        return head_loss(rows, self.head(), self.targets[self.keep], teacher=target, temperature=tau, **settings)

    def plain(self, tau=1.0, alpha=0.5, divergence="forward_kl"):
        teacher = self.hidden.detach() @ self.teacher_weight.T
        return distillation_loss(self.logits(), teacher, self.labels, temperature=tau, alpha=alpha, divergence=divergence)


def gradients(loss, leaves):
    return torch.autograd.grad(loss, leaves, retain_graph=True)


def assert_same(ours, theirs, tolerance=1e-5):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < tolerance


@pytest.mark.parametrize("divergence, tau, alpha", [*itertools.product(DIVERGENCES, (0.7, 1.0, 4.0), (0.3, 1.0)),
                                                    ("forward_kl", 2.0, 0.0)])
@pytest.mark.parametrize("head", [{}, {"bias": False}, {"scale": 0.5}, {"softcap": 2.0}, {"scale": 3.0, "softcap": 4.0}],
                         ids=str)
def test_value_and_gradients_equal_the_formula_on_full_logits(divergence, tau, alpha, head):
    case = Case(**head)
    ours, theirs = case.fused(tau, alpha=alpha, divergence=divergence)[0], case.plain(tau, alpha, divergence)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
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
    rows, head, targets = case.hidden[case.keep], case.head(), case.targets[case.keep]
    whole = gradients(head_loss(rows, head, targets)[0], case.leaves())
    cut, count = 4, torch.tensor(len(targets))  # the Trainer hands out a tensor
    parts = [head_loss(rows[part], head, targets[part], num_items=count)[0] for part in (slice(cut), slice(cut, None))]
    assert_same(gradients(sum(parts), case.leaves()), whole)


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
    loss, soft, hard = head_loss(case.hidden[:, :0].flatten(0, 1), case.head(), torch.empty(0, dtype=torch.long))
    assert loss.item() == float(soft) == float(hard) == 0
    assert all(not grad.any() for grad in gradients(loss, case.leaves()))


def test_a_soft_loss_without_a_teacher_is_an_error():
    case = Case()
    with pytest.raises(ValueError, match=r"alpha is 0\.5, but teacher is None"):
        head_loss(case.hidden[case.keep], case.head(), case.targets[case.keep], alpha=0.5)


# --- precision ---------------------------------------------------------------------------------------------------

def relative(ours, theirs):
    return max(float((one.float() - other).norm() / other.norm()) for one, other in zip(ours, theirs, strict=True))


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
    # (q - t) / 30,000 tokens is below 6e-8, the smallest number above 0 in fp16, and a GradScaler's factor comes too late
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, H, generator=random), 0.1 * torch.randn(500, H, generator=random)
    other, targets = weight + 0.01 * torch.randn(500, H, generator=random), torch.zeros(20, dtype=torch.long)

    def grads(kind, scale):
        leaves = [hidden.to(kind if whole else torch.float32).requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
            loss = head_loss(leaves[0], Head(leaves[1]), targets, alpha=1.0, num_items=30_000,
                             teacher=live_target(Head(other), hidden, 1.0))[0]
        return [grad.float() / scale for grad in gradients(loss * scale, leaves)]

    assert relative(grads(torch.float16, 65_536.0), grads(torch.float32, 1.0)) < 0.2


# --- memory ------------------------------------------------------------------------------------------------------

class Largest(TorchDispatchMode):
    """Notes the shape of the largest tensor that an operation returns."""

    numel, shape = 0, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel, self.shape = tensor.numel(), tuple(tensor.shape)
        return out


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_tensor_of_all_logits_is_made(divergence, monkeypatch):
    rows, vocabulary, size = 300, 400, 8
    set_rows(monkeypatch, 20, 5, vocabulary)
    hidden = torch.randn(rows, size, requires_grad=True)
    weight = torch.randn(vocabulary, size, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    with Largest() as seen:
        teacher = live_target(Head(torch.randn(vocabulary, size)), hidden.detach(), 2.0)
        loss = head_loss(hidden, Head(weight), targets, teacher=teacher, temperature=2.0, alpha=0.5, divergence=divergence)[0]
        loss.backward()
    assert seen.numel == 20 * vocabulary, seen.shape  # a block; all logits would be 15 times that


def test_nor_does_a_whole_step_of_two_models_make_one(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary, batch, length = 3000, 4, 24
    config = LlamaConfig(**{**SMALL, "vocab_size": vocabulary, "hidden_size": 8})
    student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config)
    ids = torch.randint(3, vocabulary, (batch, length))
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    set_rows(monkeypatch, 6, 3, vocabulary)
    with Largest() as seen:
        rows, targets = labelled(student, inputs)
        with torch.inference_mode():
            known, _ = labelled(teacher, inputs)
        target = live_target(Head.of(teacher), known, 2.0)
        head_loss(rows, Head.of(student), targets, teacher=target, temperature=2.0, alpha=0.5)[0].backward()
    assert seen.numel == vocabulary * 8, seen.shape  # the weights; the logits of all labelled rows would be 12 times that


# --- one divergence ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_and_its_gradient_equal_autograd(kind):
    random = torch.Generator().manual_seed(1)
    z, other = torch.randn(2, 6, 11, generator=random, dtype=torch.float64) * 3
    z.requires_grad_()
    expected = divergence_of(other.log_softmax(-1), z.log_softmax(-1), kind)
    value, grad = divergence_and_gradient(other.log_softmax(-1), z.detach().log_softmax(-1), kind)
    assert_same([value, grad], [expected, *gradients(expected.sum(), [z])], 1e-12)
    assert divergence_and_gradient(other.log_softmax(-1), z.detach().log_softmax(-1), kind, needs_grad=False)[1] is None


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_tokens_that_the_teacher_rules_out_leave_the_loss_finite(kind):
    log_t = torch.tensor([[0.0, 0.0, float("-inf")]]).log_softmax(-1)
    log_q = torch.tensor([[0.0, 0.0, 0.0]]).log_softmax(-1)
    value, grad = divergence_and_gradient(log_t, log_q, kind)
    assert value.isfinite().all() and grad.isfinite().all()
    assert grad[0, 2] > 0 > grad[0, 0] and abs(float(grad.sum())) < 1e-5  # away from the third token
    if kind == "forward_kl":
        assert float(value) == pytest.approx(torch.tensor(1.5).log().item())


# --- rows and head of a model ------------------------------------------------------------------------------------

def test_shifted_pairs_each_position_with_the_next_label():
    assert shifted(torch.tensor([[5, -100, 7, 8]])).tolist() == [[-100, 7, 8, -100]]
    assert shifted(torch.tensor([[5]])).tolist() == [[-100]]


SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = {"llama": {}, "phi": {}, "granite": {"logits_scaling": 4.0}, "cohere": {"logit_scale": 0.25},
           "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8, "sliding_window": 4}}


def random_model(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL, **SPECIAL[family])).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases off their neutral start
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return model


def padded_batch():
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4], labels[1, 6:] = -100, -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.arange(9).lt(torch.tensor([[9], [6]])).long()}


@pytest.mark.parametrize("family", SPECIAL)
def test_the_head_gives_the_models_own_logits_and_gradients(family):
    model, batch = random_model(family), padded_batch()
    out = model(**batch)  # transformers shifts and masks by itself
    hidden, targets = labelled(model, batch)
    keep = shifted(batch["labels"]) != -100
    assert targets.tolist() == shifted(batch["labels"])[keep].tolist()
    assert_same([Head.of(model).logits(hidden)], [out.logits[keep]])
    loss = head_loss(hidden, Head.of(model), targets)[0]
    assert loss.item() == pytest.approx(out.loss.item(), abs=1e-5)
    parameters = list(model.parameters())  # with tied embeddings, both ends of the model add to one gradient
    assert_same(gradients(loss, parameters), gradients(out.loss, parameters))


def test_the_first_label_and_padding_count_nothing(tiny):
    model, _ = tiny
    batch = padded_batch()
    hidden, targets = labelled(model, batch)
    assert len(hidden) == len(targets) == 5 + 5
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][1, 6:] = 9
    assert_same([labelled(model, changed)[0]], [hidden], 1e-6)


def test_the_models_own_head_sees_no_position(tiny):
    model, _ = tiny
    shapes = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    labelled(model, padded_batch())
    assert shapes == [(2, 0, model.config.vocab_size)]


def test_head_of_a_lora_model_is_the_base_models(tiny):
    from peft import LoraConfig, get_peft_model

    model, _ = tiny
    weight = model.lm_head.weight
    assert Head.of(get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))).weight is weight


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]},
                                     {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}], ids=str)
def test_a_head_with_an_adapter_is_refused(tiny, options):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny[0], LoraConfig(task_type="CAUSAL_LM", **options))
    with pytest.raises(ValueError, match="LM head of model is a .*target modules"):
        Head.of(model)
