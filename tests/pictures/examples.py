"""Every picture of the course, drawn from small inputs: name → a function that draws it."""
import pandas as pd
import torch

from course_lib.inference import benchmark, roofline
from course_lib.inference.speculative import SpeculativeStep
from course_lib.models import memory
from course_lib.pictures import diagrams, explorers
from course_lib.pictures.charts import (
    architectures,
    data,
    evaluation,
    export,
    inference,
    quantization,
    training,
)

STEPS = (
    SpeculativeStep((1, 2, 3), 3, 4),
    SpeculativeStep((5, 6, 7), 1, 8),
    SpeculativeStep((9, 10), 2, None),
)


class Letters:
    """Stands in for a tokenizer: token i is a letter."""

    def decode(self, ids):
        return chr(65 + ids[0])


def loss_plot():
    """Two runs: one cut after step 3, one that goes on from a checkpoint at step 2."""
    plot = training.LossPlot()
    for step, loss in ((1, 2.0), (2, 1.9), (3, 1.8), (3, 1.8), (4, 1.6)):
        plot(step, loss)
    return plot


def _inference():
    devices = benchmark.devices()
    models = ["smollm2-135m", "Qwen/Qwen2.5-0.5B"]
    yield "memory_bars", lambda: inference.memory_bars(models)
    yield "speed_lines", lambda: inference.speed_lines([*devices.values()][:4], {"SmolLM2": (538e6, 20.0)})
    yield "cost_picture", lambda: explorers.cost_picture(7, 16, devices["t4"], 0.5)
    yield "cost_picture, too large and free", lambda: explorers.cost_picture(70, 16, devices["t4"], 0.0)
    yield "roofline_chart", lambda: inference.roofline_chart(
        roofline.roofline("smollm2-135m", "fp32", device=devices["t4"]), {"decode": (0.5, 1e11)})
    yield "speculative_picture", lambda: diagrams.speculative_picture(STEPS, Letters(), 2)
    yield "verification_bars", lambda: diagrams.verification_bars("abc", [0.5, 0.2, 0.3], [0.2, 0.6, 0.2])


def _architectures():
    table = pd.DataFrame({"SmolLM2": [0.2, 2.1], "Nemo": [0.2, 0.5]}, index=["English", "한국어"])
    causal = torch.ones(9, 9).tril()
    yield "next_tokens", lambda: architectures.next_tokens(Letters(), torch.linspace(0, 3, 20))
    yield "tokens_per_character", lambda: architectures.tokens_per_character(table)
    yield "parameter_shares", lambda: architectures.parameter_shares(1e6 * table)
    yield "cache_lines", lambda: architectures.cache_lines(["google/gemma-2-2b", "Qwen/Qwen2.5-0.5B"])
    yield "soft_cap_curves", lambda: architectures.soft_cap_curves((50, 30))
    yield "head_groups", lambda: diagrams.head_groups(9, (9, 3, 1))
    yield "maps", lambda: diagrams.maps({"causal": causal, "window": causal.triu(-2)})
    yield "maps with labels", lambda: diagrams.maps(
        {"G": torch.eye(4, 26)}, "1234", "abcdefghijklmnopqrstuvwxyz", down="experts")


def _data():
    yield "run_losses", lambda: data.run_losses({"clean": [4.05, 4.04], "noisy": [4.2, 4.17]}, before=4.4)
    yield "filter_funnel", lambda: data.filter_funnel(
        [("input", 48, 80), ("duplicates", 48, 20), ("classifier", 47, 1)])
    yield "pacing_curves", lambda: data.pacing_curves(8)


def _training():
    precisions = {"full": "fp32", "lora": "bf16", "qlora": "nf4"}
    yield "training_memory", lambda: training.training_memory(
        {method: memory.estimate_memory("smollm2-135m", precision, context=200, batch=2, training=method)
         for method, precision in precisions.items()},
        {"full": 2_500_000_000, "lora": 900_000_000, "qlora": 700_000_000})
    yield "LossPlot", lambda: loss_plot().picture({0: 2.0, 4: 1.5})
    yield "wasted_tokens", lambda: training.wasted_tokens({"fixed": 0.5, "묶음": 0.25})
    yield "layer_influences", lambda: training.layer_influences([1.0, 0.1, 0.03, 0.2], [0, 3])
    yield "student_bars", lambda: training.student_bars({"labels": [2.0, 1.9], "교사": [1.1, 1.2]})
    yield (
        "distillation_curves",
        lambda: training.distillation_curves(
            {
                way: {"step": [0, 10], "kl": [3.0, 2.0], "loss": [6.0, 5.0]}
                for way in ("labels", "teacher", "both")
            }
        ),
    )
    yield "growth_lines", lambda: training.growth_lines(
        [{"step": step, "tokens": tokens, "seconds": tokens / 500, "bytes": tokens * 2e6}
         for step in ("distillation", "fine_tuning") for tokens in (256, 1024, 4096)])
    yield "distillation_terms", lambda: explorers.distillation_terms(
        Letters(), torch.linspace(0, 3, 20), torch.zeros(20), 19)


def _quantization_and_export():
    mapping = pd.DataFrame({"open_mb": [1.0, 150.0], "used_mb": [150.0, 150.0], "anonymous_mb": [5.0, 150.0]},
                           index=["mapped", "read"])
    yield "level_picture", lambda: explorers.level_picture(torch.randn(4, 64))
    yield "level_picture, even", lambda: explorers.level_picture(torch.randn(4, 64), "int", 3, 4096)
    yield "outlier_columns", lambda: quantization.outlier_columns(
        {"q_proj": torch.tensor([0.0, 1, 9]), "up_proj": torch.ones(4)})
    yield "size_against_perplexity", lambda: quantization.size_against_perplexity(pd.DataFrame(
        {"file_mb": [269.0, 164, 145], "perplexity": [53.5, 53.9, 53.6], "tokens_per_second": [27.0, 18, 93]},
        index=["bf16", "int8", "Q8_0"]))
    yield "near_ties", lambda: export.near_ties([0.0, 0.2, 3.0], {"Q8_0": [0.2], "ONNX int4": []})
    yield "mapping_bars", lambda: export.mapping_bars(
        {"a.gguf": mapping, "where the system does not tell": mapping.assign(anonymous_mb=float("nan"))})
    yield "layer_split", lambda: diagrams.layer_split([10.0, 12.0, 15.0, 20.0], 2)


def _evaluation():
    compared = pd.DataFrame(
        {"bits_per_character": [1.1, 1.2, None], "memory_mb": [269.0, 110, None],
         "estimated_mb": [269.0, 110, None], "first_token_ms": [65.0, 64, None],
         "tokens_per_second": [25.0, 35, None], "spread": [1.0, 2, None]}, index=["bf16", "nf4", "absent"])
    yield "score_bars", lambda: evaluation.score_bars(
        {"SmolLM2": (0.6, 0.1), "한국어": (0.2, 0.0)}, {"SmolLM2": 0.25, "한국어": 0.25})
    yield "score_spread", lambda: evaluation.score_spread(0.65, 0.6)
    yield "comparison_bars", lambda: evaluation.comparison_bars(compared)
    yield "comparison_bars, speed alone", lambda: evaluation.comparison_bars(
        compared[["tokens_per_second"]].dropna())
    yield "before_and_after", lambda: evaluation.before_and_after(
        {"domain": {"before": 0.25, "after": 0.8, "gain": 0.55, "low": 0.3, "high": 0.75},
         "한국어": {"before": 0.5, "after": 0.1, "gain": -0.4, "low": -0.6, "high": -0.2}})
    yield "selection_flowchart", diagrams.selection_flowchart
    yield "selection_picture", lambda: explorers.selection_picture("rag", "best", 16, "commercial", 8192)
    yield "selection_picture, nothing fits", lambda: explorers.selection_picture(
        "korean", "best", 1, "open", 131072)


PICTURES = dict([*_inference(), *_architectures(), *_data(), *_training(), *_quantization_and_export(),
                 *_evaluation()])
