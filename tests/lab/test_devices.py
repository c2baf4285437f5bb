from dataclasses import replace

import pytest
import torch
from torch import nn

from renorm.errors import ArgumentError
from renorm.lab import devices
from renorm.lab.conditions import CONDITIONS
from renorm.lab.conditions.clustered import Clustered, Halved
from renorm.lab.experiment import check_runs
from renorm.lab.tasks import fitting
from renorm.lab.training import plan, run
from renorm.report.records import Specification

DEVICES = Specification("digits", "convnet", "group_norm", "devices", 0, 12, 0.05, 16, 4)


def test_devices_of_layers_that_mix_no_examples_train_as_one() -> None:
    alone = run(replace(DEVICES, condition="iid"))
    apart = run(DEVICES)
    assert alone.loss is not None
    assert apart.loss == pytest.approx(alone.loss, rel=1e-4)
    assert dict(apart.curve) == pytest.approx(dict(alone.curve))


def test_one_device_is_the_whole_batch() -> None:
    alone = run(replace(DEVICES, condition="iid", normalizer="batch_renorm"))
    apart = run(replace(DEVICES, normalizer="batch_renorm", group_size=16))
    assert (alone.score, alone.loss) == (apart.score, apart.loss)


def test_weights_are_shared_and_statistics_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    replicas = devices.replicas(model, fitting._device_count(plan(DEVICES)))
    assert len(replicas) == 4
    x = torch.randn(4, 4, 3)
    for replica, some in zip(replicas, x, strict=True):
        assert all(a is b for a, b in zip(replica.parameters(), model.parameters(), strict=True))
        replica(some)
    means = [replica.get_buffer("1.running_mean") for replica in replicas]
    assert len({tuple(mean.tolist()) for mean in means}) == 4
    joined = devices.joined(replicas)
    torch.testing.assert_close(joined.get_buffer("1.running_mean"), torch.stack(means).mean(0))
    assert torch.equal(replicas[0].get_buffer("1.running_mean"), means[0])


def test_batch_norm_on_small_devices_is_another_run_than_on_one() -> None:
    norm = replace(DEVICES, normalizer="batch_norm", group_size=2)
    assert run(norm).loss != run(replace(norm, condition="iid")).loss


def test_processes_and_devices_are_not_mixed() -> None:
    with pytest.raises(ArgumentError, match=r"'devices' has its devices in one process, got 2"):
        check_runs([replace(DEVICES, ranks=2)], None)


def test_twins_are_parted() -> None:
    labels = torch.arange(12).repeat_interleave(10)
    draw = torch.Generator
    whole = CONDITIONS["twins"].build(24, 12)
    halves = CONDITIONS["halved_twins"].build(24, 12)
    assert (whole.group_size, halves.group_size, halves.batch_size) == (12, 6, 24)
    a = next(whole.batches(labels, draw().manual_seed(0)))
    b = next(halves.batches(labels, draw().manual_seed(0)))
    for group in labels[a].view(-1, 12):
        assert group.unique(return_counts=True)[1].tolist() == [2] * 6
    for first, second in labels[b].view(-1, 2, 6):
        assert len(first.unique()) == 6
        assert torch.equal(first, second)
    assert sorted(a.view(-1, 12)[0].tolist()) == sorted(b.view(-1, 12)[0].tolist())


def test_an_odd_number_cannot_be_parted() -> None:
    with pytest.raises(ArgumentError, match="got groups with 3 of each"):
        Halved(Clustered(6, 6, 2))
