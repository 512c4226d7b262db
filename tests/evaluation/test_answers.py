"""Answer extraction, on the ways in which models write."""
from fractions import Fraction

import pytest

from course_lib.evaluation import answers


@pytest.mark.parametrize("text, expected", [
    ("42", 42), ("42.", 42), (" 42\n", 42), ("４２", 42), ("-7", -7), ("−7", -7), ("= -7", -7), ("+7", 7),
    (".5", "1/2"), ("0.50", "1/2"), ("The answer is 42.", 42), ("The final answer is: 42", 42),
    ("**Answer:** 42", 42), ("Answer: 42 apples", 42), ("#### 1,234", 1234),
    ("3 * 12 = 36. 36 - 10 = 26.\n#### 26", 26), ("It is 5.\n#### 42\nThat took 3 steps", 42),
    ("$1,234.00", 1234), ("\\$18", 18), ("It costs $1,234,567 in all.", 1234567), ("€-5", -5), ("-$5", -5),
    ("₩12,000", 12000), (r"so \boxed{42}", 42), (r"\boxed{1} or rather \boxed{2}, of 3", 2),
    (r"$\boxed{\frac{3}{4}}$", "3/4"), (r"\boxed{\text{42 km}}", 42), (r"1{,}234", 1234), (r"12\,000", 12000),
    ("3/4 of it", "3/4"), ("1 1/2 hours", "3/2"), ("½", "1/2"), ("25%", 25), ("25 %", 25), ("12 m²", 12),
    ("12 m^2", 12), ("12 cm3", 12), ("4.5kg", "9/2"), ("room B12 has 7", 7), ("3 boxes of 12 make 36", 36),
    ("10 - 3 = 7", 7), ("10-3", 3), ("The answer is 42 apples in 3 boxes.", 42),
    ("The answer is 6 * 7 = 42.", 42), ("The answer is 42. To check: 42 / 6 = 7.", 42),
    ("2 degrees below zero", -2), ("정답은 42입니다", 42), ("정답은 42입니다.", 42), ("답: 1,234원", 1234),
    ("답은 -3입니다.", -3), ("정답: 약 3.14", "157/50"), ("따라서 남은 연필은 26자루입니다.", 26),
    ("총42개", 42), ("영하 2도", -2), ("3만 5천 원입니다", 35000), ("2만 2,200원", 22200),
    ("211만 2,000원", 2112000), ("1억 5000만 원", 150000000), ("5천원", 5000), ("4.5만 명", 45000),
    ("정답은 3개씩 14명이므로 42개입니다. 검산: 7", 42), ("대답은 3이 아니라 7", 7), ("25퍼센트", 25),
    ("The answer is unclear, maybe 8", 8), ("####", None), ("no number", None), ("", None), ("H2O", None),
    ("1/0 of 5", 5),
])
def test_number(text, expected):
    assert answers.number(text) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize("text, expected", [
    ("B", 1), (" b\n", 1), ("(b)", 1), ("[C]", 2), ("B.", 1), ("B. Paris", 1), ("C) x", 2), ("**C**", 2),
    ("D: Rome", 3), ("The answer is B.", 1), ("The answer is (c) because", 2), ("Answer: A", 0),
    ("the answer is: **D**", 3), (r"\boxed{D}", 3), (r"\boxed{\text{B}}", 1), ("정답은 B입니다", 1),
    ("정답은 2번입니다.", 1), ("2번", 1), ("②", 1), ("답: ④", 3), ("B는 파리입니다", 1),
    ("I think (B) is right", 1), ("(A) or (B)", None), ("A cat sat there", None),
    ("The answer is a number", None), ("The answer is Berlin", None), ("Both", None), ("7번", None),
    ("", None), ("A\nThe answer is: C", 2),
])
def test_choice(text, expected):
    assert answers.choice(text) == expected


def test_choice_knows_other_letters():
    assert answers.choice("E", "ABCDE") == 4 and answers.choice("E") is None
    assert answers.choice("5번", "ABCDE") == 4 and answers.choice("C", "AB") is None


@pytest.mark.parametrize("text, form", [
    ("The Thames", "thames"), ("An  apple!", "apple"), ("Saint-Exupéry", "saint exupery"), ("H₂O", "h2o"),
    ("《햄릿》", "햄릿"), ("염화 나트륨", "염화나트륨"), ("", ""), ("theatre", "theatre"),
    ("van Gogh", "van gogh"),
])
def test_normalise_answer(text, form):
    assert answers.normalise_answer(text) == form


@pytest.mark.parametrize("text, accepted, same, contained", [
    ("Ottawa", ["Ottawa"], True, True), (" ottawa.\nQuestion: and then", ["Ottawa"], True, True),
    ("The answer is Ottawa.", ["Ottawa"], True, True), ("The Thames", ["River Thames", "Thames"], True, True),
    ("The capital of Canada is Ottawa.", ["Ottawa"], False, True),
    ("It is called the Han River, in Seoul", ["Han River"], False, True), ("Osloer", ["Oslo"], False, False),
    ("Paris", ["Oslo"], False, False), ("", ["Oslo"], False, False),
    ("Saint-Exupery", ["Antoine de Saint-Exupéry", "Saint-Exupéry"], True, True),
    ("8 bits", ["8", "8 bits"], True, True), ("오타와입니다.", ["오타와"], True, True),
    ("정답은 오타와입니다.", ["오타와"], True, True), ("오타와", ["오타와"], True, True),
    ("캐나다의 수도는 오타와입니다.", ["오타와"], False, True), ("수은", ["수은"], True, True),
    ("정답은 수은입니다", ["수은"], True, True), ("수은은 금속입니다", ["수은"], False, True),
    ("염화나트륨", ["염화 나트륨"], True, True), ("지금", ["금"], False, False),
    ("태양입니다", ["태양", "해"], True, True), ("세종대왕이 만들었습니다", ["세종대왕"], False, True),
    ("4개", ["4개", "4"], True, True),
])
def test_short_answers(text, accepted, same, contained):
    assert answers.same_answer(text, accepted) is same
    assert answers.contains_answer(text, accepted) is contained


PROMPT = 'import math\n\n\ndef area(r):\n    """Area of a circle."""\n'


@pytest.mark.parametrize("completion", [
    "    return math.pi * r * r\n",
    "    return math.pi * r * r\n\n\ndef other():\n    return 1\n",
    "    square = r * r\n\n    return math.pi * square\nprint(area(2))\n# the end",
    "```python\n    return math.pi * r * r\n```\nThis works.",
    "Here it is:\n```python\ndef area(r):\n    return math.pi * r ** 2\n```\nIt uses pi.",
    "```\nimport math\n\ndef area(r):\n    return math.pi * r ** 2",
    "def area(r):\n    return math.pi * r ** 2\n\nprint(area(2))",
    "\n\ndef area(r):\n    return math.pi * r ** 2",
])
def test_code_is_found_in_what_a_model_writes(completion):
    namespace = {}
    exec(answers.code(PROMPT, completion, "area"), namespace)
    assert namespace["area"](1) == pytest.approx(3.14159, abs=1e-4) and "other" not in namespace


def test_code_that_is_none_defines_nothing_else():
    assert answers.code(PROMPT, "I cannot do that.\nimport os", "area").startswith(PROMPT)
    assert "import os" not in answers.code(PROMPT, "    return 1\nimport os", "area")
