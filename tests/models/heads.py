"""Cases and comparisons for the tests of the fused head."""
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.models import lm_head
from course_lib.models.lm_head import IGNORED, Head, head_loss, shifted
from course_lib.training.distill import distillation_loss
from course_lib.training.teacher_store import LiveTarget

B = 3
T = 7
V = 23
H = 10


def set_rows(monkeypatch, block, chunk, vocabulary=V):
    monkeypatch.setitem(lm_head.BLOCK_BYTES, "cpu", block * vocabulary * 4)
    monkeypatch.setitem(lm_head.CHUNK_BYTES, "cpu", chunk * vocabulary * 4)


class Case:
    """Hidden states, a student's and a teacher's head, and labels with gaps, in fp32."""

    def __init__(self, seed=0, bias=True, scale=1.0, softcap=None):
        random = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(B, T, H, generator=random)
        self.weight, self.teacher_weight = torch.randn(2, V, H, generator=random)
        self.bias = torch.randn(V, generator=random) if bias else None
        self.labels = torch.randint(V, (B, T), generator=random)
        self.labels[torch.rand(B, T, generator=random) < 0.3] = IGNORED
        self.targets = shifted(self.labels)
        self.keep = self.targets != IGNORED
        self.scale = scale
        self.softcap = softcap
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
        target = LiveTarget(self.teacher_head(), rows.detach(), tau)
        return head_loss(
            rows, self.head(), self.targets[self.keep], teacher=target, temperature=tau, **settings
        )

    def plain(self, tau=1.0, alpha=0.5, divergence="forward_kl"):
        teacher = self.hidden.detach() @ self.teacher_weight.T
        return distillation_loss(
            self.logits(), teacher, self.labels, temperature=tau, alpha=alpha, divergence=divergence
        )


def gradients(loss, leaves):
    return torch.autograd.grad(loss, leaves, retain_graph=True)


def assert_same(ours, theirs, tolerance=1e-5):
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() < tolerance


class Largest(TorchDispatchMode):
    """Notes the shape of the largest tensor that an operation returns."""

    numel = 0
    shape = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() > self.numel:
                self.numel = tensor.numel()
                self.shape = tuple(tensor.shape)
        return out
