"""What may go wrong behind the normalization, one bug a class."""

from typing import Any

import torch
from torch import Tensor, nn

from renorm.nn import BatchRenormAct
from support.cases import Case
from support.subjects import Subject, renorm_settings, rounded_once, settings


class PlainActivated(BatchRenormAct):
    """The modules one by one; what comes behind the norm can be overridden."""

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        y = self._normalized(input, mask)
        return self.behind(y, torch.zeros_like(y) if residual is None else residual, mask)

    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return self.act(y + residual)


class ForgetsTheActivation(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return y + residual


class ForgetsTheResidualInEval(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return self.act(y + residual if self.training else y)


class ActivatesBeforeTheResidual(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return self.act(y) + residual


class GradientPassesTheActivation(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        y = y + residual
        return y + (self.act(y) - y).detach()


class GradientOfTheResidualPassesTheActivation(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        right = self.act(y + residual.detach())
        return right + (residual - residual.detach())


class NoGradientForTheResidual(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return self.act(y + residual.detach() + 0 * residual)


class NormDecidesAboutTheGradient(PlainActivated):
    """The sign is taken before the residual is added, in backward alone."""

    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        if not isinstance(self.act, nn.ReLU):
            return y + residual
        surrogate = (y + residual) * (y > 0)
        return surrogate + (self.act(y + residual) - surrogate).detach()


class PaddingWithoutTheResidual(PlainActivated):
    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            residual = residual * mask.unsqueeze(1)
        return self.act(y + residual)


class HidesBadValues(PlainActivated):
    """A ReLU that compares: max(0, NaN) is 0 in C."""

    def behind(self, y: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return self.act((y + residual).nan_to_num(nan=0.0))


BUGS: list[type[PlainActivated]] = PlainActivated.__subclasses__()


def planted(cls: type[PlainActivated]) -> Subject:
    """The subject that builds this class for any case with something behind the norm."""

    def build(case: Case) -> Any:
        act = nn.ReLU() if case.relu else nn.Identity()
        return cls(case.shape[1], **settings(case), **renorm_settings(case), act=act)

    return Subject(cls.__name__, build, activates=True, takes=rounded_once)
