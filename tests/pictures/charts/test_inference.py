"""The roofline's labels."""
from course_lib import runtime
from course_lib.inference import benchmark, roofline
from course_lib.pictures.charts import inference


def test_the_roofline_names_its_phases():
    device = benchmark.devices()["t4"]
    roof = roofline.roofline("smollm2-135m", "fp32", prompts=(512,), batches=(1,), device=device)
    expected = {
        "en": ("prefill, 512 tokens", "decoding, batch 1:"),
        "ko": ("프리필 512토큰", "디코딩 배치 1:"),
    }
    for lang, phases in expected.items():
        runtime.set_language(lang)
        labels = " ".join(label.get_text() for label in inference.roofline_chart(roof).axes[0].texts)
        assert all(phase in labels for phase in phases)
