"""Settings of every test process: two of them share two cores."""

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
