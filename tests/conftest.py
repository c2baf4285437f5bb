"""Settings of every test process: two of them share two cores."""

import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch

from support import interpreter

torch.set_num_threads(1)
hypothesis.settings.register_profile("steady", deadline=None)  # machines are slow at times
hypothesis.settings.load_profile("steady")
if not torch.cuda.is_available():
    interpreter.use()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compiled_apart() -> Iterator[None]:
    """What a test compiled counts to the limit of recompilations of those after it: forget it."""
    yield
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None and dynamo.counters:
        torch._dynamo.reset()
        dynamo.counters.clear()
