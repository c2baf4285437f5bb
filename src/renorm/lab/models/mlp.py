"""The fully connected net of the batch norm paper."""

from torch import Tensor, nn

WIDTH, HIDDEN = 100, 3


class SigmoidMLP(nn.Module):
    """Three layers of 100 units with a norm and a sigmoid each, and one of scores.

    The hidden layers have no bias (the norm's shift stands for it). Weights are Gaussian; the
    paper does not give their deviation, which is 1 / sqrt(inputs) here.

    Args:
        classes: length of the output.
        inputs: values of an example.
        hidden: layers of 100 units.
        bias: whether these have a bias after all, to be compared without norms.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), section 4.1.
    """

    def __init__(self, classes: int, inputs: int, hidden: int = HIDDEN, bias: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in (inputs, *[WIDTH] * (hidden - 1)):
            layers += [nn.Linear(width, WIDTH, bias=bias), nn.BatchNorm1d(WIDTH), nn.Sigmoid()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTH, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, examples: Tensor) -> Tensor:
        """Class scores (N, classes) of ``examples`` (N, ...), which are flattened."""
        return self.head(self.hidden(examples))
