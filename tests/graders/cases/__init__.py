"""Answers to the exercises, a file a lesson: RIGHT (id, answer), WRONG (id, answer, key of the hint)."""
