"""The figures of the README: `python -m bench` (`python course.py bench` sets up first)."""
