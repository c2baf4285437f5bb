import pytest
import torch
from torch import nn

import renorm
from renorm import limits
from renorm.errors import ArgumentError
from renorm.lab.experiment import Grid
from renorm.lab.normalizers import Setting, find, names

SETTING = Setting(None, 1000, torch.zeros(2, 3))


def made(name: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU())
    return find(name).apply(model, SETTING).get_submodule("1")


def test_options_reach_the_layer() -> None:
    groups = made("group_norm(groups=2)")
    assert isinstance(groups, nn.GroupNorm)
    assert groups.num_groups == 2
    small = made("batch_renorm(momentum=0.2, r_max=1.5, d_max=0.5, ramp=False)")
    assert isinstance(small, renorm.BatchRenorm1d)
    assert (small.momentum, small.limits) == (0.2, limits.fixed(1.5, 0.5))
    ramped = made("batch_renorm(r_max=2)")
    assert isinstance(ramped, renorm.BatchRenorm1d)
    assert ramped.limits == limits.Limits(limits.Ramp(1.0, 2.0, 50, 400), limits.over(1000).d_max)
    window = made("cross_iteration(window=4, burn_in=0.1, compensation='none')")
    assert isinstance(window, renorm.CrossIterationBatchNorm1d)
    assert (window.window, window.burn_in, window.compensation) == (4, 100, "none")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("batch-norm", "batch_norm"),
        ("group_norm( groups = 8 )", "group_norm(groups=8)"),
        ("batch_renorm(r_max=2,momentum=.1)", "batch_renorm(momentum=0.1, r_max=2)"),
        ("batch-renorm(ramp=False)", "batch_renorm(ramp=False)"),
        ("group_norm()", "group_norm"),
    ],
)
def test_a_name_is_one_however_it_is_written(given: str, name: str) -> None:
    assert find(given).name == find(name).name == name
    assert names([given, name]) == (name,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("batch_nrom", "Did you mean 'batch_norm'"),
        ("batch_nrom(groups=1)", "Did you mean 'batch_norm'"),
        ("group_norm(size=1)", r"no option 'size'\. Did you mean 'group_size'\? It has groups"),
        ("none(size=1)", "has no option 'size'. It has none"),
        ("cross_iteration(burn_in='x')", "'burn_in' .* is a number, .* got 'x'"),
        ("batch_renorm(momentum='x')", "'momentum' .* is a number, .* got 'x'"),
        ("batch_renorm(r_max=True)", "'r_max' .* is a number, such as 3.0 .* got True"),
        ("batch_renorm(ramp='no')", "'ramp' .* is True or False, .* got 'no'"),
        ("batch_renorm(ramp=0)", "'ramp' .* is True or False, .* got 0"),
        ("noisy_batch_norm(n_mu=None)", "'n_mu' .* is a number, .* got None"),
        ("cross_iteration(compensation=1)", "is a text in quotes, .* got 1"),
        ("group_norm(8)", r"plain values by name, .* got 'group_norm\(8\)'"),
        ("group_norm(groups=", "plain values by name"),
        ("group_norm(groups=open('x'))", "plain values by name"),
        ("group_norm(groups=1)(groups=2)", "plain values by name"),
        ("group_norm(**{'groups': 1})", "plain values by name"),
    ],
)
def test_what_is_no_name_is_refused(given: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        find(given)


@pytest.mark.parametrize("part", [-0.1, 2.0])
def test_a_burn_in_is_a_part_of_the_run(part: float) -> None:
    with pytest.raises(ArgumentError, match=r"0 to 1, got"):
        made(f"cross_iteration(burn_in={part})")


@pytest.mark.parametrize("name", ["batch_renorm(momentum=None)", "lp_batch_norm(momentum=None)"])
def test_a_momentum_may_be_none(name: str) -> None:
    assert find(name).name == name


def test_a_grid_takes_them() -> None:
    grid = Grid.of("digits", normalizers=("batch-norm", "group_norm( groups=2)"))
    assert grid.normalizers == ("batch_norm", "group_norm(groups=2)")
