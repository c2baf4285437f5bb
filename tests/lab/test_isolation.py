import random

import numpy as np
import pytest
import torch

from renorm.lab.isolation import isolated


def test_what_happens_inside_depends_on_the_seed_alone() -> None:
    draws = []
    for before in (1, 2):
        torch.manual_seed(before)
        np.random.seed(before)
        random.seed(before)
        with torch.no_grad(), isolated(5):
            draws.append(torch.tensor([*torch.rand(3), *np.random.rand(3), random.random()]))
            assert torch.get_num_threads() == 1
            assert torch.is_grad_enabled()
    assert torch.equal(*draws)


@pytest.mark.parametrize("fails", [False, True])
def test_generator_threads_and_grad_mode_come_back(fails: bool) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
    )
    try:
        with torch.no_grad():
            try:
                with isolated(5):
                    torch.rand(3)
                    np.random.rand(3)
                    random.random()
                    if fails:
                        raise RuntimeError
            except RuntimeError:
                assert fails
            assert not torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), state)
        np.testing.assert_equal(np.random.get_state(), numpy_state)
        assert random.getstate() == python_state
    finally:
        torch.set_num_threads(threads)
