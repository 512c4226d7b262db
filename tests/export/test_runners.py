"""What every runner has in common: agreement with a reference, and the times of a stream of tokens."""
import pytest

from course_lib.export import runners


def test_agreement_counts_up_to_the_first_difference():
    assert runners.agreement([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) == 1.0
    # one equal, one not; what comes after is another text
    assert runners.agreement([[1, 9, 3]], [[1, 2, 3]]) == 0.5
    assert runners.agreement([[9, 2, 3, 4]], [[1, 2, 3, 4]]) == 0.0
    assert runners.agreement([[1]], [[1, 2, 3]]) == 0.5  # ended too early
    assert runners.agreement([[1, 2, 3]], [[1]]) == 1.0
    for answers, references in (([[1]], []), ([[1]], [[]])):
        with pytest.raises(ValueError, match="one answer for each"):
            runners.agreement(answers, references)


@pytest.mark.parametrize("count, ends, tokens", [
    (3, (), [1, 2, 3]), (9, (3,), [1, 2]), (1, (), [1]), (9, (1,), [])])
def test_a_stream_becomes_an_answer(count, ends, tokens):
    answer = runners.timed_answer(iter(range(1, 10)), str, 5, max_new_tokens=count, ends=ends)
    assert (answer.tokens, answer.text, answer.prompt_tokens) == (tokens, str(tokens), 5)
    assert answer.first_token > 0 and (answer.tokens_per_second > 0) == (count > 1 and ends != (1,))
