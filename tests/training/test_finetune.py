"""Fine-tuning against TRL, PEFT and plain arithmetic: the same losses and counts; interrupted runs."""
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTTrainer

from course_lib import loading
from course_lib.inference.perplexity import answer_loss
from course_lib.models import catalog, memory
from course_lib.training import finetune
from course_lib.training.samples import LabelledCollator, tokenize_chat

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("red", "a longer one", "blue sky", "no", "rain falls", "seven", "it is late", "the end of it all")
# fp32 throughout, steps one can see
EXACT = {"bf16": False, "fp16": False, "batch_size": 2, "learning_rate": 1e-2}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle"}


def questions(count=8):
    return Dataset.from_list([{"question": f"{index}?", "answer": WORDS[index % len(WORDS)]}
                              for index in range(count)])


def ids_of(tokenizer):
    return {name: value for name, value in tokenizer("Which way?", return_tensors="pt").items()
            if name != "token_type_ids"}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right, tolerance=1e-6):
    return left.keys() == right.keys() and all(torch.allclose(left[key], right[key], atol=tolerance)
                                               for key in left)


# --- counting ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model_id, targets, expected", [
    ("Qwen/Qwen2.5-0.5B", ["q_proj", "k_proj", "v_proj", "o_proj"], 2_162_688),
    ("Qwen/Qwen2.5-1.5B", ["q_proj", "k_proj", "v_proj", "o_proj"], 4_358_144),
    ("Qwen/Qwen2.5-7B", ["q_proj", "k_proj", "v_proj", "o_proj"], 10_092_544),
    ("Qwen/Qwen2.5-0.5B", "all-linear", 8_798_208),
    ("Qwen/Qwen2.5-1.5B", "all-linear", 18_464_768),
    ("Qwen/Qwen2.5-7B", "all-linear", 40_370_176),
])
def test_lora_parameters_of_the_catalog(model_id, targets, expected):
    assert finetune.lora_parameters(model_id, 16, targets) == expected


@pytest.mark.parametrize("targets",
                         ["all-linear", "q_proj", ["q_proj", "v_proj"], ["gate_proj", "down_proj"]])
def test_lora_parameters_equal_pefts(tiny, targets):
    model, _ = tiny
    counted = finetune.lora_parameters(model.config, 3, targets)
    named = [targets] if targets == "q_proj" else targets
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=named, task_type="CAUSAL_LM"))
    assert counted == adapted.get_nb_trainable_parameters()[0]


def test_a_target_that_matches_no_layer_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"'q_proj', 'k_proj', 'v_proj'.*qkv_proj"):
        finetune.lora_parameters("microsoft/Phi-3-mini-4k-instruct", 16,
                                 ["q_proj", "k_proj", "v_proj", "o_proj"])
    with pytest.raises(ValueError, match="target_modules names nothing"):
        finetune.lora_parameters("Qwen/Qwen2.5-0.5B", 16, [])
    with pytest.raises(ValueError, match="'qkv_proj'.*q_proj"):
        finetune.finetune(*tiny, questions(), target_modules=["qkv_proj", "o_proj"])
    with pytest.raises(ValueError, match="rank is 0"):
        finetune.lora_parameters("Qwen/Qwen2.5-0.5B", 0)
    with pytest.raises(LookupError):
        finetune.lora_parameters("Qwen/Qwen9")


# --- the loss ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, accumulation", [("full", 1), ("lora", 2)])
def test_losses_equal_trls(tiny_folder, monkeypatch, method, accumulation):
    runs = []
    for trainer in (finetune.AnswerTrainer, SFTTrainer):
        monkeypatch.setattr(finetune, "AnswerTrainer", trainer)
        model, tokenizer = loading.load(tiny_folder, "fp32")
        result = finetune.finetune(model, tokenizer, questions(), method=method, epochs=2,
                                   gradient_accumulation_steps=accumulation, **EXACT)
        runs.append((result.losses, weights(result.model)))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-4) and len(runs[0][0]) == 8 // accumulation
    assert runs[0][0][-1] < 0.9 * runs[0][0][0]
    assert same(runs[0][1], runs[1][1], 1e-4)


def test_the_first_loss_is_that_of_the_answers(tiny):
    model, tokenizer = tiny
    samples = tokenize_chat(questions(2), tokenizer)
    batch = LabelledCollator(tokenizer.pad_token_id)([samples[0], samples[1]])
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    right = [logits[row, place - 1].log_softmax(-1)[token] for row, labels in enumerate(batch["labels"])
             for place, token in enumerate(labels) if token != -100]
    assert [len(WORDS[0]) + len(WORDS[1]) + 2] == [len(right)]  # bytes of the answers and their ends of turn
    result = finetune.finetune(model, tokenizer, questions(2), eval_dataset=questions(2), **EXACT)
    assert result.losses[0] == pytest.approx(-float(torch.stack(right).mean()), rel=1e-5)
    assert result.eval_loss[0] == pytest.approx(result.losses[0], rel=1e-5)
    assert result.eval_loss[1] < result.eval_loss[0]


def test_batches_are_padded_to_their_longest_and_grouped(tiny, monkeypatch):
    model, tokenizer = tiny
    shapes = []
    plain = finetune.AnswerTrainer.compute_loss

    def noting(self, model, inputs, *args, **kwargs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(finetune.AnswerTrainer, "compute_loss", noting)
    data = questions(64)
    lengths = sorted(len(ids) for ids in tokenize_chat(data, tokenizer)["input_ids"])
    finetune.finetune(model, tokenizer, data, **EXACT)
    assert max(longest for _, longest in shapes) == lengths[-1] < 128
    padded = sum(rows * longest for rows, longest in shapes)
    assert padded < 1.05 * sum(lengths) < 64 * lengths[-1]


# --- what cannot be ----------------------------------------------------------------------------------------

def test_method_and_model_must_match(tiny, tiny_folder):
    quantized, tokenizer = loading.load(tiny_folder, "nf4")
    for method in ("lora", "full"):
        with pytest.raises(ValueError, match=f"method is '{method}', but the model is quantized"):
            finetune.finetune(quantized, tokenizer, questions(), method=method)
    with pytest.raises(ValueError, match="model is not quantized; 'qlora' needs"):
        finetune.finetune(*tiny, questions(), method="qlora")
    with pytest.raises(ValueError, match="method is 'adapter'; it must be one of full, lora, qlora"):
        finetune.finetune(*tiny, questions(), method="adapter")
    with pytest.raises(ValueError, match="rank is 0"):
        finetune.finetune(*tiny, questions(), rank=0)


def test_bad_datasets_are_named(tiny):
    with pytest.raises(ValueError, match="dataset is empty"):
        finetune.finetune(*tiny, questions(1).select([]))
    long = Dataset.from_list([{"question": "?", "answer": "a"}, {"question": "why?", "answer": "b" * 300}])
    with pytest.raises(ValueError,
                       match=r"sample 1 takes \d+ tokens .* 301 for the answer, more than max_length 256"):
        finetune.finetune(*tiny, long)
    with pytest.raises(ValueError, match="more than max_length 20"):
        finetune.finetune(*tiny, questions(), max_length=20)
    with pytest.raises(ValueError, match="sample 1"):
        finetune.finetune(*tiny, questions(), eval_dataset=long)


def test_a_second_adapter_on_top_is_refused(tiny):
    result = finetune.finetune(*tiny, questions(), max_steps=1, **EXACT)
    with pytest.raises(ValueError, match="has an adapter already"):
        finetune.finetune(result.model, tiny[1], questions())


# --- saved, loaded, merged ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """(result, logits of the trained model) of a short LoRA run, saved."""
    model, tokenizer = loading.load(tiny_folder, "fp32")
    result = finetune.finetune(model, tokenizer, questions(), output_dir=tmp_path_factory.mktemp("run"),
                               rank=4, **EXACT)
    with torch.inference_mode():
        return result, result.model(**ids_of(tokenizer)).logits


def test_the_result_says_what_happened(trained, tiny):
    result, logits = trained
    assert len(result.losses) == 4 and result.eval_loss is None and result.seconds > 0
    assert not result.model.training and result.folder.is_dir()
    model, tokenizer = tiny
    assert not torch.allclose(model(**ids_of(tokenizer)).logits, logits,
                              atol=1e-2), "training changed nothing"
    assert loading.chat(result.model, tokenizer, "0?", max_new_tokens=3) is not None


def test_the_folder_holds_safetensors_and_no_path_of_this_machine(trained, tiny_folder):
    folder = trained[0].folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (folder / "adapter_model.safetensors").is_file()
    assert config["base_model_name_or_path"] == tiny_folder.name and config["r"] == 4
    assert config["lora_alpha"] == 8
    files = [path for path in folder.iterdir() if path.is_file()]
    assert not PICKLES & {path.suffix for path in files}
    assert [path.name for path in files if str(tiny_folder.parent.parent).encode() in path.read_bytes()] == []


def test_a_loaded_adapter_gives_the_trained_logits(trained, tiny):
    result, logits = trained
    model, tokenizer = tiny
    loaded = finetune.load_adapter(model, result.folder)
    with torch.inference_mode():
        assert torch.allclose(loaded(**ids_of(tokenizer)).logits, logits, atol=1e-5)
    assert not loaded.training


def test_merged_weights_give_the_adapters_logits(trained, tiny, tmp_path):
    result, logits = trained
    model, tokenizer = tiny
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    merged = finetune.merge(finetune.load_adapter(model, result.folder))
    with torch.inference_mode():
        assert torch.allclose(merged(**ids_of(tokenizer)).logits, logits, atol=1e-3)
    assert not any("lora" in name for name in merged.state_dict())
    assert not torch.equal(merged.model.layers[0].self_attn.q_proj.weight, before)
    merged.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert same(weights(loading.load(tmp_path, "fp32")[0]), weights(merged))


def test_merging_needs_an_adapter_and_a_base_that_is_not_quantized(trained, tiny, tiny_folder):
    with pytest.raises(ValueError, match="LlamaForCausalLM without an adapter"):
        finetune.merge(tiny[0])
    quantized = finetune.load_adapter(loading.load(tiny_folder, "nf4")[0], trained[0].folder)
    with pytest.raises(ValueError, match=r"the model is quantized \(bitsandbytes\), and the sum"):
        finetune.merge(quantized)


def test_an_adapter_of_another_base_is_refused(trained, tiny_folder, tmp_path):
    folder = trained[0].folder
    config = loading.load(tiny_folder, "fp32")[0].config
    torch.manual_seed(1)
    stranger = type(loading.load(tiny_folder, "fp32")[0])(config)  # the same shapes, other weights
    with pytest.raises(ValueError, match=f"trained on another model .{tiny_folder.name}, 2 layers"):
        finetune.load_adapter(stranger, folder)
    # a student made of the same model: equal embeddings, one layer
    shallow, _ = loading.load(tiny_folder, "fp32")
    shallow.model.layers = shallow.model.layers[:1]
    shallow.config.num_hidden_layers = 1
    with pytest.raises(ValueError, match="2 layers"):
        finetune.load_adapter(shallow, folder)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        finetune.load_adapter(stranger, tmp_path)


def test_an_adapter_from_elsewhere_must_fit(tiny, tmp_path):
    model, _ = tiny
    wide = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 32, "head_dim": 8}))
    get_peft_model(wide,
                   LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit this model"):
        finetune.load_adapter(model, tmp_path)


# --- interrupted -------------------------------------------------------------------------------------------

class PowerCut(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(tiny_folder, tmp_path, monkeypatch, method):
    def run(folder):
        model, tokenizer = loading.load(tiny_folder, "fp32")
        return finetune.finetune(model, tokenizer, questions(), method=method, output_dir=folder, epochs=2,
                                 save_strategy="steps", save_steps=3, **EXACT)

    whole = run(tmp_path / "whole")
    step = iter(range(100))
    plain = finetune.AnswerTrainer.training_step

    def cut(self, *args, **kwargs):
        if next(step) == 5:
            raise PowerCut
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(finetune.AnswerTrainer, "training_step", cut)
        with pytest.raises(PowerCut):
            run(tmp_path / "cut")
    resumed = run(tmp_path / "cut")
    assert len(whole.losses) == 8
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    assert same(weights(resumed.model), weights(whole.model))


# --- quantized, and the real model -------------------------------------------------------------------------

def test_qlora_trains_adapters_in_fp32_and_nothing_else(tiny_folder):
    model, tokenizer = loading.load(tiny_folder, "nf4")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = finetune.finetune(model, tokenizer, questions(), method="qlora", rank=4, epochs=3,
                               learning_rate=1e-2)
    trained = {name: value for name, value in result.model.named_parameters() if value.requires_grad}
    assert trained
    assert all("lora_" in name and value.dtype == torch.float32 for name, value in trained.items())
    assert sum(value.numel() for value in trained.values()) == memory.adapter_parameters(model.config, 4)
    after = {name.replace(".base_layer", ""): value
             for name, value in result.model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.uint8
    assert result.losses[-1] < 0.9 * result.losses[0]


def test_a_model_that_was_used_before_learns_as_well(tiny_folder):
    """On some CPUs bitsandbytes packs 4-bit weights at their first use, and packed ones have no gradient."""
    def run(used):
        model, tokenizer = loading.load(tiny_folder, "nf4")
        if used:
            loading.chat(model, tokenizer, "ab", max_new_tokens=2)
        return finetune.finetune(model, tokenizer, questions(), method="qlora", rank=4, epochs=3,
                                 learning_rate=1e-2).losses

    assert run(True) == pytest.approx(run(False), rel=0.02)


def test_each_step_is_reported(tiny):
    seen = {}
    result = finetune.finetune(*tiny, questions(), on_step=seen.__setitem__, **EXACT)
    assert list(seen) == list(range(1, len(result.losses) + 1)) and list(seen.values()) == result.losses


def test_what_on_step_raises_ends_the_run(tiny):
    def stop(step, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(*tiny, questions(), on_step=stop, **EXACT)


def test_settings_reach_the_trainer(tiny, monkeypatch):
    seen = {}
    with pytest.raises(TypeError, match="max_seq_length"):
        finetune.finetune(*tiny, questions(), max_seq_length=512)
    assert not hasattr(tiny[0], "peft_config"), "a wrong setting leaves the model as it was"

    class Noting(finetune.AnswerTrainer):
        def train(self, **options):
            seen.update(vars(self.args))
            return super().train(**options)

    monkeypatch.setattr(finetune, "AnswerTrainer", Noting)
    finetune.finetune(*tiny, questions(), batch_size=3, gradient_accumulation_steps=2, warmup_steps=2,
                      activation_checkpointing=True, seed=5)
    assert (seen["per_device_train_batch_size"], seen["gradient_accumulation_steps"]) == (3, 2)
    assert seen["warmup_steps"] == 2 and seen["activation_checkpointing"] and seen["seed"] == 5
    assert seen["learning_rate"] == finetune.LEARNING_RATES["lora"]


def test_zero_means_zero(tiny):
    """Not the default, as `learning_rate or …` would have it."""
    before = weights(tiny[0])
    result = finetune.finetune(*tiny, questions(2), method="full", **{**EXACT, "learning_rate": 0})
    assert same(weights(result.model), before, 0)
    result = finetune.finetune(*tiny, questions(2), alpha=0, rank=2, **EXACT)
    assert result.model.peft_config["default"].lora_alpha == 0
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        finetune.finetune(result.model.unload(), tiny[1], questions(2), batch_size=0)


def test_adapters_on_a_bf16_base_train_without_autocast_too(tiny_folder):
    """As on a CPU without fast bf16 products."""
    runs = [finetune.finetune(*loading.load(tiny_folder, "bf16"), questions(),
                              **{**EXACT, "bf16": flag}).losses
            for flag in (False, True)]
    assert runs[0] == pytest.approx(runs[1], rel=0.05)


def test_checkpointing_changes_no_loss(tiny_folder):
    losses = [finetune.finetune(*loading.load(tiny_folder, "fp32"), questions(),
                                activation_checkpointing=flag, **EXACT).losses
              for flag in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_real_model_learns_korean(real_folder):
    from course_lib.data import texts

    model, tokenizer = loading.load(real_folder, "bf16")
    held_out = texts.load_qa("ko", "validation").select(range(2))
    result = finetune.finetune(model, tokenizer, texts.load_qa("ko").select(range(4)), eval_dataset=held_out,
                               learning_rate=2e-3, max_steps=2)
    assert result.eval_loss[1] < result.eval_loss[0]
    assert catalog.count_parameters("smollm2-135m") == 134_515_008
    adapters = [value for value in result.model.parameters() if value.requires_grad]
    assert sum(value.numel() for value in adapters) == finetune.lora_parameters("smollm2-135m")
    again = answer_loss(result.model, tokenize_chat(held_out, tokenizer))
    assert result.eval_loss[1] == pytest.approx(again, rel=1e-3)


# --- several processes -------------------------------------------------------------------------------------

def test_two_processes_equal_one_with_twice_the_batch(tiny, tmp_path, monkeypatch, capsys):
    base = tmp_path / "base"
    # in this tokenizer a letter is a token, so the course's questions need more room
    tiny[0].config.max_position_embeddings = 2048
    tiny[0].save_pretrained(base)
    tiny[1].save_pretrained(base)
    script = str(ROOT / "notebooks/assets/train_with_accelerate.py")
    options = ["--lang", "en", "--model", str(base), "--output", str(tmp_path / "adapter"), "--batch-size"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = {**os.environ, "COURSE_PROFILE": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *launch, script, *options, "2"], capture_output=True, text=True,
                          env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout.splitlines()[-1])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    shutil.rmtree(tmp_path / "adapter")  # else the next run would be the continuation of this one
    monkeypatch.setattr(sys, "argv", [script, *options, "4"])
    runpy.run_path(script, run_name="__main__")
    one = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-3) and len(one["losses"]) == 8
    assert one["losses"][-1] < one["losses"][0] - 0.1


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_the_lesson_shows_this_script_and_this_command(lang):
    lesson = ROOT / f"notebooks/{lang}/06_efficient_training.ipynb"
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    shown = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert (ROOT / "notebooks/assets/train_with_accelerate.py").read_text(encoding="utf-8").strip() in shown
    script = "notebooks/assets/train_with_accelerate.py"
    assert f"accelerate launch --multi_gpu --num_processes 2 {script}" in shown
