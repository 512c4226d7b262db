"""What trains fast on a device: the measured type, the attention kernel, a Trainer's arguments."""
import pytest
import torch

from course_lib.training import device
from course_lib.training.device import fast_attention, fast_dtype

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_fast_type_of_a_cpu_is_one_that_trains_safely():
    assert fast_dtype("cpu") in (torch.bfloat16, torch.float32) and fast_dtype("mps") == torch.float32
    assert fast_dtype("cpu") is fast_dtype("cpu")


@pytest.mark.parametrize("slowdown, expected",
                         [(1.0, torch.float32), (0.5, torch.bfloat16), (3.0, torch.float32)])
def test_bf16_is_chosen_where_it_is_measured_faster(monkeypatch, slowdown, expected):
    clock = [0.0]
    product = torch.Tensor.__matmul__

    def timed(left, right):
        clock[0] += slowdown if left.dtype == torch.bfloat16 else 1.0
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])
    assert fast_dtype.__wrapped__("cpu") == expected


@pytest.mark.parametrize("bf16, expected", [(True, torch.bfloat16), (False, torch.float16)])
def test_old_gpus_train_in_fp16(monkeypatch, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: bf16 or including_emulation)
    assert fast_dtype.__wrapped__("cuda") == fast_dtype.__wrapped__("cuda:1") == expected


@pytest.mark.parametrize("longest, expected", [(10, "eager"), (512, "eager"), (513, "sdpa")])
@pytest.mark.parametrize("start", ["eager", "sdpa"])
def test_short_samples_get_plain_attention_and_the_same_loss(tiny, longest, expected, start):
    model, _ = tiny
    model.set_attn_implementation(start)
    ids = torch.randint(3, 250, (2, 10))
    before = model(ids, labels=ids).loss.item()
    fast_attention(model, longest)
    assert model.config._attn_implementation == expected
    assert model(ids, labels=ids).loss.item() == pytest.approx(before, abs=1e-5)


def test_arguments_start_from_the_device_and_can_be_overridden(tiny, tmp_path):
    model, _ = tiny
    plain = device.training_arguments(tmp_path, model)
    assert plain.device.type == "cpu" and plain.per_device_train_batch_size == 4 and plain.report_to == []
    assert plain.bf16 == (fast_dtype("cpu") == torch.bfloat16) and not plain.fp16
    changed = device.training_arguments(tmp_path, model, per_device_train_batch_size=2, bf16=False,
                                        learning_rate=1e-3)
    assert (changed.per_device_train_batch_size, changed.bf16, changed.learning_rate) == (2, False, 1e-3)
