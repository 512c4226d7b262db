"""`course_lib`: the small package behind the course on small language models.

`import course_lib as cl` takes milliseconds: a name is imported when it is first used, by the tables below.
What every lesson needs is flat (`cl.load`); everything else is reached by its room
(`cl.training.tokenize_chat`).
"""
import lazy_loader

FLAT = {
    "runtime": ["profile", "set_seed", "setup"],
    "graders": ["check"],
    "loading": ["chat", "load"],
    "models.catalog": ["count_parameters", "weight_bytes"],
    "models.memory": ["estimate_memory"],
    "models.selection": ["recommend"],
    "inference.benchmark": ["benchmark", "predict"],
    "inference.perplexity": ["perplexity"],
    "inference.roofline": ["roofline"],
    "inference.speculative": ["speculative_generate"],
    "data.texts": ["load_corpus", "load_qa"],
    "data.records": ["load_records"],
    "training.finetune": ["finetune", "merge"],
    "training.distill": ["distillation_loss"],
    "quantization.methods": ["quantize"],
    "evaluation.harness": ["evaluate"],
    "export.gguf": ["to_gguf"],
}

# room → file → names; the room's own `__init__` hands its part to `lazy_loader`
ROOMS = {
    "models": {
        "architectures": [
            "FeedForward", "GroupedQueryAttention", "SoftCapAttention", "SparseMoE", "active_parameters",
            "causal_mask", "load_balancing_loss", "mha_to_gqa", "rotary", "soft_cap", "upcycle_to_moe",
        ],
        "cards": ["catalog_data", "catalog_ids", "get_card", "hub_facts"],
        "catalog": [
            "catalog_table", "compare_models", "config", "linear_layers", "linear_shapes", "skeleton",
        ],
        "lm_head": ["Head", "head_loss", "labelled"],
        "memory": ["Training", "kv_cache_bytes"],
        "published": ["benchmarks", "measures"],
        "selection": ["TIERS"],
    },
    "inference": {
        "benchmark": ["available_attention", "cost_per_million_tokens", "devices", "this_machine"],
        "meters": ["measured_bytes", "peak_bytes", "resident_memory", "timings"],
        "perplexity": ["answer_loss", "perplexities"],
        "speculative": ["expected_speedup", "expected_tokens_per_pass", "verify"],
    },
    "data": {
        "curriculum": ["CurriculumSampler", "curriculum_weights"],
        "filters": [
            "MAX_REPETITION", "near_duplicates", "normalise", "quality_filter", "repetition", "sentences",
            "train_quality_classifier",
        ],
        "noise": ["NOISE_KINDS"],
        "synthesis": [
            "LocalTeacher", "ServerTeacher", "explanation_prompt", "synthesize", "valid_explanation",
        ],
        "texts": ["load_choices"],
    },
    "training": {
        "device": ["defaults", "fast_attention", "fast_dtype", "training_arguments"],
        "distill": ["SupervisedDistillationTrainer", "closeness"],
        "finetune": ["load_adapter", "lora_parameters"],
        "publish": ["push_adapter", "write_card"],
        "samples": ["LabelledCollator", "cut_into_blocks", "tokenize_chat", "tokenize_texts"],
        "students": ["block_influence", "make_student"],
        "teacher_store": ["respond_and_collect", "store_teacher_topk"],
    },
    "evaluation": {
        "harness": ["responses", "scores"],
        "sandbox.run": ["protections", "run_untrusted"],
        "statistics": ["paired_bootstrap"],
        "tasks": ["TASKS", "hub_reachable", "read_questions"],
    },
    "quantization": {
        "calibration": ["inputs_of", "watch_inputs"],
        "methods": ["qat", "save"],
        "rounding": [
            "awq_round", "awq_scales", "bits_per_weight", "blockwise_absmax", "dequantize", "gptq_codes",
            "gptq_round", "nf4_codebook", "round_to_nearest",
        ],
    },
    "export": {
        "executorch": ["ExecutorchModel", "to_executorch"],
        "folding": ["fold_batch_norm", "fold_norms"],
        "gguf": ["read_gguf_header", "tensor_types", "to_gguf"],
        "gguf_run": ["GgufModel", "run_gguf", "serve_gguf"],
        "mapping": ["memory_map_figures"],
        "onnx": ["OnnxModel", "to_onnx"],
        "runners": ["agreement"],
        "toolchains": ["missing_tools", "mlc_commands", "tensorrt_llm_commands"],
    },
    "pictures": {
        "canvas": ["display_with_fallback", "explorer"],
        "charts.architectures": [
            "cache_lines", "next_tokens", "parameter_shares", "soft_cap_curves", "tokens_per_character",
        ],
        "charts.data": ["filter_funnel", "pacing_curves", "run_losses"],
        "charts.evaluation": ["before_and_after", "comparison_bars", "score_bars", "score_spread"],
        "charts.export": ["mapping_bars", "near_ties"],
        "charts.inference": ["memory_bars", "roofline_chart", "speed_lines"],
        "charts.quantization": ["outlier_columns", "size_against_perplexity"],
        "charts.training": [
            "LossPlot", "distillation_curves", "layer_influences", "student_bars", "training_memory",
            "wasted_tokens",
        ],
        "diagrams": ["head_groups", "layer_split", "maps", "selection_flowchart", "verification_bars"],
        "explorers": [
            "cost_explorer", "distillation_explorer", "level_explorer", "sampling_explorer",
            "selection_explorer", "speculative_explorer",
        ],
    },
}

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["compare", "graders", "loading", "offline_models", "runtime", *ROOMS], FLAT)
