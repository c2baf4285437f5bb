import pytest
import torch
from torch import nn

from renorm.lab.normalizers import NORMALIZERS, Setting, find


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != "none"])
def test_weight_and_bias_are_the_models(name: str, dtype: torch.dtype) -> None:
    norm = nn.BatchNorm1d(6, dtype=dtype)
    weight, bias = torch.linspace(0, 1, 6, dtype=dtype), torch.linspace(-1, 1, 6, dtype=dtype)
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    assert norm.bias is not None
    norm.bias.requires_grad_(False)
    model = nn.Sequential(nn.Linear(5, 6, dtype=dtype), norm)
    setting = Setting(4, 10, torch.zeros(2, 5, dtype=dtype))
    made = NORMALIZERS[name].apply(model, setting)
    found = {key.rpartition(".")[2]: one for key, one in made.get_submodule("1").named_parameters()}
    assert {key: one.requires_grad for key, one in found.items()} == {"weight": True, "bias": False}
    torch.testing.assert_close(found["weight"].detach(), weight, rtol=0, atol=0)
    torch.testing.assert_close(found["bias"].detach(), bias, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != "none"])
def test_a_layer_without_weight_gets_none(name: str) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, affine=False))
    made = NORMALIZERS[name].apply(model, Setting(4, 10, torch.zeros(2, 5)))
    assert not list(made.get_submodule("1").parameters())


def test_batch_renorm_is_compared_with_moving_averages_in_its_backward_pass() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
    entry = find("batch_renorm(backward='moving', backward_momentum=0.2)")
    layer = entry.apply(model, Setting(4, 10, torch.zeros(2, 5)))[1]  # type: ignore[index]
    assert (layer.backward, layer.backward_momentum, layer.microbatch) == ("moving", 0.2, 4)
