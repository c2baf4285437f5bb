"""Settings of every test process: two of them share two cores."""

import pytest
import torch

from support import interpreter

torch.set_num_threads(1)
if not torch.cuda.is_available():
    interpreter.use()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
