"""The graders: right answers pass, wrong ones get the hint meant for them, and no hint gives the solution away."""
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from course_lib import catalog, graders, lessons, runtime
from course_lib.graders import grading

HERE = Path(__file__).resolve().parent
HANGUL = re.compile(r"[\uac00-\ud7a3]")
STRINGS = json.loads((HERE.parent / "course_lib" / "strings.json").read_text("utf-8"))
CASES = [importlib.import_module(f"grader_cases.{path.stem}") for path in sorted((HERE / "grader_cases").glob("lesson_*.py"))]
RIGHT, WRONG = ([case for module in CASES for case in getattr(module, name)] for name in ("RIGHT", "WRONG"))
SOLUTION = {module.__name__[-2:]: re.compile(module.SOLUTION, re.IGNORECASE) for module in CASES}
ODD = [0, 1.5, "", "text", b"bytes", [], {}, (), object(), np.array([1.0, 2.0]), pd.Series([1, 2]), torch.ones(4),
       torch.tensor(1j), torch.ones(4) * 1j, True, float("inf"), len, Exception("x"), catalog]


def ids_and(cases):
    return [pytest.param(*case, id=f"{case[0]}-{index}") for index, case in enumerate(cases)]


def in_both_languages(exercise_id: str, answer: object) -> tuple[str, str]:
    """The messages of a failing grade, in English and in Korean."""
    messages = []
    for lang in runtime.LANGUAGES:
        runtime.set_language(lang)
        grade = graders.check(exercise_id, answer)
        assert not grade.passed and not grade and repr(grade) == f"✘ {grade.message}"
        messages.append(grade.message)
    return tuple(messages)


def test_every_exercise_has_a_right_answer_and_wrong_ones_here():
    assert {case[0] for case in RIGHT} == {case[0] for case in WRONG} == set(graders.exercises())


@pytest.mark.parametrize("exercise_id, answer", ids_and(RIGHT))
def test_right_answers_pass(exercise_id, answer):
    grade = graders.check(exercise_id, answer)
    assert grade.passed and grade and repr(grade) == f"✔ Exercise {exercise_id}: right!"
    runtime.set_language("ko")
    assert HANGUL.search(graders.check(exercise_id, answer).message)


@pytest.mark.parametrize("exercise_id, answer, key", ids_and(WRONG))
def test_wrong_answers_get_the_right_kind_of_hint(exercise_id, answer, key, monkeypatch):
    english, korean = in_both_languages(exercise_id, answer)
    assert HANGUL.search(korean) and not HANGUL.search(english.replace("왜요", ""))
    monkeypatch.setattr(grading, "text", lambda key, **values: key)
    assert graders.check(exercise_id, answer) == graders.Grade(False, key)


@pytest.mark.parametrize("exercise_id", graders.exercises())
def test_an_untouched_exercise_fails(exercise_id):
    def untouched(*arguments):
        ...

    english, korean = in_both_languages(exercise_id, None)
    assert english.startswith(f"Exercise {exercise_id}: not tried yet") and HANGUL.search(korean)
    reply = in_both_languages(exercise_id, untouched)[0]
    assert "returned None" in reply or exercise_id == "01.3", "01.3 asks for a value, the others for a function"


@pytest.mark.parametrize("exercise_id", graders.exercises())
def test_odd_answers_get_a_hint_and_no_traceback(exercise_id):
    for odd in ODD:
        for answer in (odd, lambda *_, odd=odd: odd):
            english, korean = in_both_languages(exercise_id, answer)
            assert english and HANGUL.search(korean) and "Traceback" not in english


@pytest.mark.parametrize("exercise_id", [name for name in graders.exercises() if name != "01.3"])
def test_a_function_that_raises_or_takes_other_arguments_is_told_so(exercise_id):
    def broken(*arguments):
        raise ValueError("my own mistake")

    for message in in_both_languages(exercise_id, broken):
        assert "ValueError: my own mistake" in message
    for message in in_both_languages(exercise_id, lambda: 1):
        assert "TypeError" in message


def test_any_model_of_the_catalog_is_graded_without_naming_another():
    accepted = {answer for exercise_id, answer in RIGHT if exercise_id == "01.3"}
    cards = [catalog.get(model_id) for model_id in catalog.ids()]
    every = {name for card in cards for name in (card.id, card.instruct_id, *card.aliases) if name}
    for name in every - accepted:
        for message in in_both_languages("01.3", name):
            assert name in message
            assert not any(other in message.replace(name, "") for other in every if len(other) > 3)
    assert all(graders.check("01.3", name) for name in accepted)


@pytest.mark.parametrize("key", [key for key in STRINGS if key.startswith("check.")])
def test_hints_hold_no_solution(key):
    assert set(STRINGS[key]) == set(runtime.LANGUAGES)
    solution = SOLUTION.get(key.split(".")[1])
    assert not any(solution and solution.search(STRINGS[key][lang]) for lang in runtime.LANGUAGES)
    assert HANGUL.search(STRINGS[key]["ko"]) and not HANGUL.search(STRINGS[key]["en"])


def test_an_unknown_exercise_lists_the_known():
    with pytest.raises(LookupError, match=", ".join(graders.exercises())):
        graders.check("99.9", 1)
    assert lessons.check is graders.check
