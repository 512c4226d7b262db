"""How often the worse of two models wins, and what a picture says of a model that failed."""
import re

import pandas as pd

from course_lib.pictures.charts import evaluation


def test_the_worse_model_wins_less_often_the_more_questions_there_are():
    panels = evaluation.score_spread(0.65, 0.6, (50, 1000)).axes
    few, many = (int(re.search(r"(\d+) %", axes.get_title())[1]) for axes in panels)
    assert 30 < few < 40 and many < 3


def test_a_model_that_failed_is_marked():
    table = pd.DataFrame(
        {"memory_mb": [269.0, None], "tokens_per_second": [25.0, "out of memory"]}, ["a", "b"]
    )
    for axes in evaluation.comparison_bars(table).axes:
        number, words = (label.get_text() for label in axes.texts)
        assert number in ("269", "25") and words == "not measured"
