"""Workers that need not import torch again."""

import multiprocessing

import pytest

from support.ranks import prepared


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts the pool's workers prepared, for tests of what they do and not of how they start."""
    context = prepared()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
