"""Workers that need not import torch again."""

import pytest

from renorm.lab import pool
from support.ranks import prepared


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts the pool's workers prepared, for tests of what they do and not of how they start."""
    context = prepared()
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda method: context)
