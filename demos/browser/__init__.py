"""The model in a web page: `python -m demos.browser`."""
