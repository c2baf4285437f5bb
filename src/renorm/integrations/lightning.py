"""``NormMonitor``, a callback for Lightning, of ``lightning`` or of ``pytorch_lightning``.

    from renorm.integrations.lightning import NormMonitor

    trainer = Trainer(callbacks=[NormMonitor(every=100)])

Lightning is imported where the class is first asked for, not with this module.
"""

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from torch import nn

from renorm.errors import MissingExtraError
from renorm.measure import Monitor

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class _Observing:
    """Observe the normalization layers in every so many steps, and log to the trainer's loggers.

    As ``renorm.measure.Monitor``, which says what is observed, from the start of training to its
    end, whatever ends it. Batches whose gradients are accumulated are one step, and so is a batch
    in which several optimizers step. The figures have the names ``norms/layer/figure``, such as
    ``norms/net.1/r_median``.

    Args:
        every: steps from one that is observed to the next, at least 1.
        layers: globs on names of layers in the LightningModule; None for all.
        keep: observed steps that ``monitor.observations`` has, the latest; None for all.
    """

    monitor: Monitor | None

    def __init__(
        self,
        every: int = 100,
        layers: str | Iterable[str] | None = None,
        *,
        keep: int | None = 20,
    ) -> None:
        super().__init__()
        self.every = every
        self.layers = layers if layers is None or isinstance(layers, str) else list(layers)
        self.keep = keep
        self.monitor = None
        self._stepped = 0

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Begin to observe; a resumed training goes on counting."""

        def log(step: int, figures: dict[str, float]) -> None:
            named = {f"norms/{name}": value for name, value in figures.items()}
            for logger in trainer.loggers:
                logger.log_metrics(named, step=step)

        self._stepped = trainer.global_step
        self.monitor = Monitor(
            pl_module, self.every, log, self.layers, keep=self.keep, start=self._stepped
        )

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Count a step, if the batch ended with one of an optimizer."""
        if self.monitor is not None and trainer.global_step != self._stepped:
            self._stepped = trainer.global_step
            self.monitor.step()

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Observe no more."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Observe no more."""
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def __getattr__(name: str) -> Any:
    if name != "NormMonitor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    entries = {"__module__": __name__, "__doc__": _Observing.__doc__}
    globals()[name] = type(name, (_Observing, _callback()), entries)
    return globals()[name]


def _callback() -> Any:
    """The base class: of the package that the program has imported, or else that is installed.

    Raises:
        MissingExtraError: neither ``lightning`` nor ``pytorch_lightning`` is installed.
    """
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        if find_spec(name.partition(".")[0]) is not None:
            return importlib.import_module(name).Callback
    raise MissingExtraError(
        "NormMonitor is a callback for Lightning, which is not installed. "
        'Run: pip install "renorm[lightning]"'
    )
