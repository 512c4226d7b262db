"""Answers to the exercises of lesson 01."""
import numpy as np

RIGHT = [
    ("01.1", lambda parameters, bits: parameters * bits / 8 / 1e9),
    ("01.1", lambda parameters, bits: np.float64(parameters) * bits / 8e9),
    ("01.2", lambda weight_gb, bandwidth: bandwidth / weight_gb),
    ("01.3", "Qwen/Qwen2.5-1.5B-Instruct"),
    ("01.3", "Qwen/Qwen2.5-0.5B-Instruct"),
]
WRONG = [
    ("01.1", lambda parameters, bits: parameters * bits / 8 / 2**30, "check.01.1"),
    ("01.1", lambda parameters, bits: parameters * bits / 1e9, "check.01.1"),
    ("01.1", lambda parameters, bits: parameters * bits / 8, "check.01.1"),
    ("01.1", lambda parameters, bits: parameters * bits // 8 // 10**9, "check.01.1"),
    ("01.1", lambda parameters, bits: parameters * 2 / 1e9, "check.01.1"),
    ("01.1", lambda parameters, bits: 2.0, "check.01.1"),
    ("01.1", lambda parameters, bits: float("nan"), "check.01.1"),
    ("01.1", lambda parameters, bits: bits**1000, "check.01.1"),
    ("01.2", lambda weight_gb, bandwidth: weight_gb / bandwidth, "check.01.2"),
    ("01.2", lambda weight_gb, bandwidth: bandwidth * 1e9 / weight_gb, "check.01.2"),
    ("01.2", lambda weight_gb, bandwidth: bandwidth * 8 / weight_gb, "check.01.2"),
    ("01.2", lambda weight_gb, bandwidth: bandwidth // weight_gb, "check.01.2"),
    ("01.3", "Qwen/Qwen2.5-3B-Instruct", "check.01.3.license"),
    ("01.3", "LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct", "check.01.3.license"),
    ("01.3", "Qwen/Qwen2.5-7B-Instruct", "check.01.3.memory"),
    ("01.3", "qwen/qwen2.5-14b", "check.01.3.memory"),
    ("01.3", "microsoft/Phi-4-mini-instruct", "check.01.3.memory"),
    ("01.3", "meta-llama/Llama-3.2-1B-Instruct", "check.01.3.language"),
    ("01.3", "smollm2-135m", "check.01.3.language"),
    ("01.3", "microsoft/Phi-3-small-8k-instruct", "check.01.3.language"),
    ("01.3", "Qwen/Qwen2.5-1.5B", "check.01.3.base"),
    ("01.3", "Qwen2.5 1.5B please", "check.unknown_model"),
]
# pieces of the reference solutions that no hint may hold
SOLUTION = r"/ ?8|\* ?bits|1e9|bandwidth ?/|대역폭 ?[/÷]|Qwen"
