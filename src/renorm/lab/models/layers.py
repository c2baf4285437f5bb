"""What several nets are made of."""

from torch import nn


def convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution without a bias, a norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


def he_normal(net: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / n), n inputs each, in place.

    Source: He, Zhang, Ren and Sun 2015 (arXiv 1502.01852), equation 10.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
