"""Several micro-batches, one step of the statistics."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from renorm.errors import ArgumentError
from renorm.nn.batch_renorm import BatchRenorm
from renorm.nn.cross_iteration import CrossIterationBatchNorm
from renorm.nn.deferral import Deferral


@contextmanager
def accumulate(model: nn.Module) -> Iterator[None]:
    """Make the training forwards inside one step of the statistics, as for gradient accumulation.

    Each micro-batch is normalized by its own statistics, corrected by running statistics and limits
    that stay as they were at the start. On leaving, these take one step, ``num_batches_tracked``
    and with it the schedule too, towards the pooled moments of all the micro-batches::

        n = sum n_i     mean = sum n_i mean_i / n     var = sum n_i (var_i + (mean_i - mean)^2) / n

    which are those of the batch that they would be in one piece. (With ``microbatch=`` each
    forward contributes the average over its groups.) A layer that is shared or called several
    times is pooled as well, so the forwards of a GAN's step or a double Q network can be one step
    of the statistics.

    Contexts may be nested; the outermost takes the step. Where an exception ends it, nothing
    moves. A state_dict saved inside has the statistics from before; one loaded inside, or
    ``reset_running_stats``, drops the micro-batches before it. A forward with one value a channel
    has no spread and counts for nothing. With ``sync="running"`` the exchange among processes also
    waits for the end: one for all micro-batches.

    To a cross-iteration layer each micro-batch is an iteration, in here as anywhere: it borrows the
    statistics of those before it, which have the same weights, so they are exact.

    Args:
        model: with at least one layer of ours.

    Raises:
        ArgumentError: there is no layer of ours.

    Source: gradient accumulation as in Caffe's BatchReNorm, which fixes the reference over
    ``iter_size`` micro-batches; pooling by Chan, Golub and LeVeque 1979.

    >>> import torch
    >>> model = nn.Sequential(BatchRenorm(3, momentum=1.0))
    >>> x = torch.randn(8, 3)
    >>> with accumulate(model):
    ...     for part in x.split(2):
    ...         y = model(part)  # and backward
    >>> torch.allclose(model[0].running_mean, x.mean(0), atol=1e-6)
    True
    >>> int(model[0].num_batches_tracked)
    1
    """
    layers = [m for m in model.modules() if isinstance(m, BatchRenorm)]
    if not layers and not any(isinstance(m, CrossIterationBatchNorm) for m in model.modules()):
        raise ArgumentError(
            f"{type(model).__name__} has no batch renorm layer, so there are no statistics to "
            "accumulate. Convert its batch norm layers first: renorm.convert(model)."
        )
    own = Deferral()
    with ExitStack() as contexts:
        contexts.callback(own.disband)
        own.adopt([m for m in layers if m._deferral is None and m.running_mean is not None])
        for deferral in dict.fromkeys(m._deferral for m in layers):
            if deferral is not None:
                contexts.enter_context(deferral.accumulation())
        yield
