"""The callback in a real trainer, of each of the two packages."""

import csv
import importlib
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from renorm import BatchRenorm1d, limits
from renorm.errors import MissingExtraError
from renorm.integrations import lightning

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
INSTALLED = [name for name in PACKAGES if find_spec(name.partition(".")[0])]


@pytest.fixture(params=PACKAGES)
def pl(request: pytest.FixtureRequest) -> Any:
    if request.param not in INSTALLED:
        pytest.skip(f'{request.param} is not installed: pip install "renorm[lightning]"')
    return importlib.import_module(request.param)


def a_module(pl: Any, fails_at: int = -1) -> Any:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            norm = BatchRenorm1d(4, limits=limits.fixed(3, 5))
            self.net = nn.Sequential(nn.Linear(3, 4), norm, nn.BatchNorm1d(4))

        def training_step(self, batch: Any, index: int) -> Any:
            if index == fails_at:
                raise ValueError("a bad batch")
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: Any, index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Module()


def fit(pl: Any, folder: Path, module: Any, monitor: Any, **options: Any) -> Any:
    data = torch.utils.data.TensorDataset(torch.randn(24, 3))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    logger = importlib.import_module(f"{pl.__name__}.loggers").CSVLogger(folder)
    trainer = pl.Trainer(
        **{"max_epochs": 1, "callbacks": [monitor], "logger": logger} | options,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, loader, loader, ckpt_path=options.get("ckpt_path"))
    return trainer


def logged(trainer: Any) -> list[tuple[int, dict[str, float]]]:
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        (int(row["step"]), {k: float(v) for k, v in row.items() if v and k.startswith("norms/")})
        for row in rows
    ]


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) for m in module.modules())


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*was configured so validation"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]


def monitor_of(**options: Any) -> Any:
    return lightning.NormMonitor(**options)


def test_observes_and_logs(pl: Any, tmp_path: Path) -> None:
    module, callback = a_module(pl), monitor_of(every=2)
    trainer = fit(pl, tmp_path, module, callback)
    observations = callback.monitor.observations
    assert [(one.step, one.layer) for one in observations] == [
        (step, layer) for step in (0, 2, 4) for layer in ("net.1", "net.2")
    ]
    entries = [(step, figures) for step, figures in logged(trainer) if figures]
    assert [step for step, _ in entries] == [0, 2, 4]
    assert entries[2][1]["norms/net.1/gap"] == pytest.approx(observations[4].gap)
    assert len(entries[2][1]) == 11 + 7
    assert hooks(module) == 0


def test_accumulated_batches_are_one_step(pl: Any, tmp_path: Path) -> None:
    callback = monitor_of(every=1, layers=["net.1"])
    fit(pl, tmp_path, a_module(pl), callback, accumulate_grad_batches=3)
    observations = callback.monitor.observations
    assert [(one.step, one.r.shape) for one in observations] == [(0, (3, 4)), (1, (3, 4))]


def test_an_exception_leaves_no_hook(pl: Any, tmp_path: Path) -> None:
    module, callback = a_module(pl, fails_at=2), monitor_of(every=1)
    with pytest.raises(ValueError, match="a bad batch"):
        fit(pl, tmp_path, module, callback)
    assert hooks(module) == 0
    assert len(callback.monitor.observations) == 4


def test_a_second_fit_goes_on_counting(pl: Any, tmp_path: Path) -> None:
    module, callback = a_module(pl), monitor_of(every=4)
    trainer = fit(pl, tmp_path, module, callback)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, trainer.train_dataloader, trainer.train_dataloader)
    assert [one.step for one in callback.monitor.observations][::2] == [8]


def test_the_class_can_be_pickled(pl: Any) -> None:
    callback = monitor_of(every=7, layers=iter(["net.*"]))
    again = pickle.loads(pickle.dumps(callback))
    assert isinstance(again, pl.Callback) or len(INSTALLED) > 1
    assert (type(again), again.every, again.layers) == (type(callback), 7, ["net.*"])


def test_without_lightning_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning, "find_spec", lambda name: None)
    monkeypatch.delitem(vars(lightning), "NormMonitor", raising=False)
    with pytest.raises(MissingExtraError, match=r'pip install "renorm\[lightning\]"'):
        lightning.NormMonitor()


def test_there_is_nothing_else_in_the_module() -> None:
    with pytest.raises(AttributeError, match="NormMonitors"):
        lightning.NormMonitors()
