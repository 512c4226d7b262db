"""Rows and head of real architectures: their own logits and gradients, wrappers, what a whole step makes."""
import pytest
import torch

from course_lib.models.lm_head import IGNORED, Head, head_loss, labelled, shifted
from course_lib.training.teacher_store import LiveTarget
from tests.models.heads import Largest, assert_same, gradients, set_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Blocks of 5 rows in chunks of 2, neither of which divides the rows of a case."""
    set_rows(monkeypatch, 5, 2)


def test_shifted_pairs_each_position_with_the_next_label():
    assert shifted(torch.tensor([[5, -100, 7, 8]])).tolist() == [[-100, 7, 8, -100]]
    assert shifted(torch.tensor([[5]])).tolist() == [[-100]]


SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}
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
    labels[0, :4] = IGNORED
    labels[1, 6:] = IGNORED
    mask = torch.arange(9).lt(torch.tensor([[9], [6]])).long()
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@pytest.mark.parametrize("family", SPECIAL)
def test_the_head_gives_the_models_own_logits_and_gradients(family):
    model = random_model(family)
    batch = padded_batch()
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
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert Head.of(adapted).weight is weight


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]},
                                     {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}], ids=str)
def test_a_head_with_an_adapter_is_refused(tiny, options):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny[0], LoraConfig(task_type="CAUSAL_LM", **options))
    with pytest.raises(ValueError, match="LM head of model is a .*target modules"):
        Head.of(model)


def test_nor_does_a_whole_step_of_two_models_make_one(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = 3000
    config = LlamaConfig(**{**SMALL, "vocab_size": vocabulary, "hidden_size": 8})
    student = LlamaForCausalLM(config)
    teacher = LlamaForCausalLM(config)
    ids = torch.randint(3, vocabulary, (4, 24))
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    set_rows(monkeypatch, 6, 3, vocabulary)
    with Largest() as seen:
        rows, targets = labelled(student, inputs)
        with torch.inference_mode():
            known, _ = labelled(teacher, inputs)
        target = LiveTarget(Head.of(teacher), known, 2.0)
        head_loss(rows, Head.of(student), targets, teacher=target, temperature=2.0, alpha=0.5)[0].backward()
    # the weights; the logits of all labelled rows would be 12 times that
    assert seen.numel == vocabulary * 8, seen.shape
