import tempfile

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """Every scratch folder is gone after the test."""
    base = tmp_path / "temporary"
    base.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    yield
    assert list(base.iterdir()) == []
