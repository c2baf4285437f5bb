"""How far running statistics of processes lie apart; of all ranks, as there is no other group."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from renorm import ArgumentError
from renorm.measure.circumstances import rank_spread
from renorm.measure.records import RankSpread
from support.ranks import Ranks


def apart(rank: int, group: Any) -> Any:
    model = nn.Sequential(nn.BatchNorm1d(2, eps=0.5), nn.Linear(2, 2), nn.BatchNorm1d(1))
    first, last = model[0], model[2]
    assert isinstance(first, nn.BatchNorm1d)
    assert isinstance(last, nn.BatchNorm1d)
    first.running_mean = torch.tensor([0.0, 2.0 * rank])
    first.running_var = torch.tensor([1.0, 3.5])
    if rank == 3:
        last.running_mean = torch.tensor([torch.nan])
    before = copy.deepcopy(model.state_dict())
    found = rank_spread(model)
    after = model.state_dict()
    kept = all(torch.equal(t.nan_to_num(-1), after[k].nan_to_num(-1)) for k, t in before.items())
    return found, kept


def test_ranks_with_statistics_of_their_own(ranks: Ranks) -> None:
    answers = ranks.run(apart, size=4)
    for (first, last), kept in answers:
        # means 0, 2, 4, 6 with variance 3.5 + eps: pooled mean 3, variance 4 + 5
        assert (first.layer, first.processes) == ("0", 4)
        assert first.shift == pytest.approx(1.0)
        assert first.log_ratio == pytest.approx(math.log(1.5))
        assert last == RankSpread("2", 4, None, last.log_ratio)
        assert kept


def alike(rank: int, group: Any) -> Any:
    return rank_spread(nn.Sequential(nn.BatchNorm1d(2)))


def test_ranks_that_agree(ranks: Ranks) -> None:
    assert ranks.run(alike, size=4) == [(RankSpread("0", 4, 0.0, 0.0),)] * 4


def other_widths(rank: int, group: Any) -> Any:
    with pytest.raises(ArgumentError, match="differs"):
        rank_spread(nn.Sequential(nn.BatchNorm1d(2 + rank)))


def test_ranks_with_other_layers(ranks: Ranks) -> None:
    ranks.run(other_widths, size=4)
