"""The graders: right answers pass, wrong ones get the hint meant for them, no hint gives a solution away."""
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import course_lib
from course_lib import graders, runtime
from course_lib.graders import grading
from course_lib.models import cards

HERE = Path(__file__).resolve().parent
PACKAGE = Path(course_lib.__file__).parent
HANGUL = re.compile(r"[\uac00-\ud7a3]")
STRINGS = json.loads((PACKAGE / "strings.json").read_text("utf-8"))
CASES = [importlib.import_module(f"tests.graders.cases.{path.stem}")
         for path in sorted((HERE / "cases").glob("lesson_*.py"))]
RIGHT, WRONG = ([case for module in CASES for case in getattr(module, name)] for name in ("RIGHT", "WRONG"))
SOLUTION = {module.__name__[-2:]: re.compile(module.SOLUTION, re.IGNORECASE) for module in CASES}
ODD = [0, 1.5, "", "text", b"bytes", [], {}, (), object(), np.array([1.0, 2.0]), pd.Series([1, 2]),
       torch.ones(4), torch.tensor(1j), torch.ones(4) * 1j, True, float("inf"), len, Exception("x"), runtime]


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
    assert "returned None" in reply or exercise_id == "01.3", "only 01.3 asks for a value"


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
    known = [cards.get_card(model_id) for model_id in cards.catalog_ids()]
    every = {name for card in known for name in (card.id, card.instruct_id, *card.aliases) if name}
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


# --- the registry -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("exercise_id, known", [
    ("01.9", "01.1, 01.2, 01.3"), ("99.1", "01, 02, 03"), (None, "01, 02, 03"),
])
def test_an_unknown_exercise_lists_the_known(exercise_id, known):
    with pytest.raises(LookupError, match=known):
        graders.check(exercise_id, 1)


def test_exercises_of_one_lesson_and_of_all():
    assert graders.exercises("01") == ["01.1", "01.2", "01.3"]
    assert set(graders.exercises("01")) < set(graders.exercises())
    by_lesson = [exercise for lesson in grading.lessons() for exercise in graders.exercises(lesson)]
    assert graders.exercises() == sorted(by_lesson)
    with pytest.raises(LookupError, match="lesson '1' has no exercises; those of 01, 02"):
        graders.exercises("1")


def test_a_check_loads_the_graders_of_its_lesson_only():
    code = ("import sys, course_lib as cl; assert cl.check('01.2', lambda size, speed: speed / size);"
            "print(*sorted(name for name in sys.modules if name.startswith('course_lib.graders.lesson')))")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout == "course_lib.graders.lesson_01\n"


def test_listeners_hear_every_grade(monkeypatch):
    heard = []
    monkeypatch.setattr(grading, "_listeners", [])
    graders.on_grade(lambda *grade: heard.append(grade))
    for answer in (None, 3, lambda weight_gb, bandwidth: bandwidth / weight_gb):
        graders.check("01.2", answer)
    assert heard == [("01.2", False, "check.untouched", {"id": "01.2"}),
                     ("01.2", False, "check.not_a_function", {"type": "int"}),
                     ("01.2", True, "check.right", {"id": "01.2"})]
    assert course_lib.check is graders.check
