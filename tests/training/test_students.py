"""Students against the layers that they were cut from, block influence against its formula."""
import copy

import pytest
import torch

from course_lib import loading
from course_lib.training.students import block_influence, make_student

pytestmark = pytest.mark.usefixtures("one_thread")


# --- make_student ------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6,
         "num_attention_heads": 4,
         "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}
KINDS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "llama": {}, "llama, tied": {"tie_word_embeddings": True},
    "smollm3": {"no_rope_layers": [1, 1, 0, 1, 1, 0]}, "mixtral": {},
    "gemma2": {"head_dim": 8, "sliding_window": 3, "layer_types": KINDS * 3},
    "gemma3_text": {"head_dim": 8, "sliding_window": 3, "layer_types": KINDS * 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
}
KEPT = [0, 2, 3, 5]
IDS = torch.randint(3, 40, (2, 11), generator=torch.Generator().manual_seed(0))


def random_model(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split(",")[0], **{**SMALL, **FAMILIES[family]})
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def logits_of(model, ids=IDS):
    return model(ids).logits


def without_layers(model, kept):
    """A second way to drop layers: let the others pass their input through."""
    cut = copy.deepcopy(model)
    for index, layer in enumerate(cut.model.layers):
        if index not in kept:
            layer.forward = lambda hidden, *args, **others: hidden
    return cut


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_computes_what_its_layers_compute_in_the_teacher(family):
    teacher = random_model(family)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = make_student(teacher, KEPT)
    with torch.no_grad():
        expected = without_layers(teacher, KEPT)(IDS, use_cache=False).logits
    assert torch.equal(logits_of(student), expected)
    assert not torch.allclose(logits_of(student), logits_of(teacher), atol=0.1)
    for parameter in student.parameters():  # copies: what the student learns stays with the student
        parameter.data.add_(1)
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in before.items())
    assert teacher.config.num_hidden_layers == 6 == len(teacher.model.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_and_indices_fit_the_new_depth(family):
    teacher = random_model(family)
    student = make_student(teacher, KEPT)
    assert student.config.num_hidden_layers == len(student.model.layers) == 4
    assert type(student) is type(teacher)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2, 3]
    for name in ("layer_types", "no_rope_layers"):
        if getattr(teacher.config, name, None):
            assert getattr(student.config, name) == [getattr(teacher.config, name)[index] for index in KEPT]
            assert len(getattr(teacher.config, name)) == 6
    tied = [model.lm_head.weight is model.model.embed_tokens.weight for model in (teacher, student)]
    assert tied[0] == tied[1] == bool(teacher.config.tie_word_embeddings)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_kept_is_the_teacher_and_a_saved_student_comes_back(family, tmp_path):
    from transformers import AutoModelForCausalLM

    teacher = random_model(family)
    assert torch.equal(logits_of(make_student(teacher, range(6))), logits_of(teacher))
    student = make_student(teacher, KEPT)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(again), logits_of(student)) and again.config.num_hidden_layers == 4


@pytest.mark.parametrize("family", ["llama", "gemma2", "smollm3"])
def test_a_student_generates_the_same_with_and_without_a_cache(family):
    student = make_student(random_model(family), [1, 2, 5])
    cached, plain = (student.generate(IDS, do_sample=False, max_new_tokens=12, use_cache=flag)
                     for flag in (True, False))
    assert cached.shape == (2, 23) and torch.equal(cached, plain)
    out = student(IDS, use_cache=True).past_key_values
    assert len(out.layers) == 3


def test_precision_mode_attention_and_generation_settings_are_kept(tiny_folder):
    model, _ = loading.load(tiny_folder, "bf16", attn_implementation="eager")
    model.generation_config.max_new_tokens = 7
    student = make_student(model, [0, 1])
    assert student.dtype == torch.bfloat16 and not student.training
    assert student.config._attn_implementation == "eager"
    assert student.generation_config.max_new_tokens == 7
    assert student.generation_config is not model.generation_config
    assert torch.equal(logits_of(student), logits_of(model))
    assert make_student(model.train(), [1]).training


@pytest.mark.parametrize("layers", [[], [0, 0], [1, 0], [2], [-1], [0, 5], [0.5]], ids=str)
def test_bad_layer_lists_are_named(tiny, layers):
    message = r"layers is \[.*\]; it must hold different indices in ascending order, from 0 to 1"
    with pytest.raises(ValueError, match=message):
        make_student(tiny[0], layers)


def test_a_quantized_teacher_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="model is quantized"):
        make_student(loading.load(tiny_folder, "nf4")[0], [0])


def test_half_of_the_real_model(real):
    model, _ = real
    student = make_student(model, range(0, 30, 2))
    layer = sum(part.numel()
                for part in model.model.layers[0].parameters())
    assert student.num_parameters() == model.num_parameters() - 15 * layer
    assert torch.equal(student.model.layers[3].mlp.up_proj.weight, model.model.layers[6].mlp.up_proj.weight)


# --- block_influence ---------------------------------------------------------------------------------------

TEXTS = ["Layers differ in what they change.", "층마다 바꾸는 정도가 다르다."]


def test_influence_is_a_mean_over_tokens_of_one_minus_cosine(tiny):
    model, tokenizer = tiny
    total = torch.zeros(2)
    count = 0
    for text in TEXTS:
        inputs = []
        hooks = [part.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
                 # what leaves the last layer enters the norm
                 for part in (*model.model.layers, model.model.norm)]
        logits_of(model, tokenizer(text, return_tensors="pt").input_ids)
        for hook in hooks:
            hook.remove()
        for index in range(2):
            before = inputs[index][0]
            after = inputs[index + 1][0]
            total[index] += (1 - (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)).sum()
        count += len(inputs[0][0])
    assert block_influence(model, tokenizer, TEXTS) == pytest.approx((total / count).tolist(), abs=1e-5)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_passes_everything_through_has_no_influence(tiny):
    model, tokenizer = tiny
    before = block_influence(model, tokenizer, TEXTS)
    for matrix in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        matrix.weight.data.mul_(0.1)
    weak = block_influence(model, tokenizer, TEXTS)
    assert 0 < weak[1] < before[1] and weak[0] == before[0]
    for matrix in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        matrix.weight.data.zero_()
    assert block_influence(model, tokenizer, TEXTS)[1] == pytest.approx(0, abs=1e-6)


def test_influence_of_the_real_models_layers(real):
    found = block_influence(*real, TEXTS)
    assert len(found) == 30 and all(0 < value < 2 for value in found)
    assert found[0] > 5 * min(found)


@pytest.mark.parametrize("texts", [[], ["", "a"]], ids=str)
def test_influence_needs_texts(tiny, texts):
    with pytest.raises(ValueError, match="texts is empty or holds an empty text"):
        block_influence(*tiny, texts)
