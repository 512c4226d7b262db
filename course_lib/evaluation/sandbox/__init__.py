"""Run generated code in a separate process: no network, no home folder, limits."""
