"""Answers to the exercises, right and wrong, a file a lesson: RIGHT (id, answer), WRONG (id, answer, key of the hint)."""
