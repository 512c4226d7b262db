"""Tools for maintainers, run from the root of a checkout, such as `python -m tools.pairs status`."""
