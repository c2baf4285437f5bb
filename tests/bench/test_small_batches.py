"""Virtual workers of a net, and runs on noise in the files of Fashion-MNIST."""

import gzip
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from renorm.errors import ArgumentError
from renorm.lab.data import Images
from renorm.limits import over
from renorm.nn import BatchRenorm2d
from support.scripts import command

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_batches.py"
FILES = {"train": 40, "t10k": 40}
SMALL = ["--normalizers", "batch_norm", "batch_renorm", "--norm-batches", "4", "2"]
NORMS = {
    "batch_norm": nn.BatchNorm2d,
    "batch_renorm": BatchRenorm2d,
    "group_norm": nn.GroupNorm,
}
SETTINGS = [*SMALL, "--batch", "4", "--steps", "2"]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("small_batches_training")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("small_batches")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    (folder / "fashion_mnist").mkdir()
    for name, count in FILES.items():
        write_idx(folder, f"{name}-images-idx3", draw.integers(0, 256, (count, 28, 28)))
        write_idx(folder, f"{name}-labels-idx1", np.arange(count) % 10)
    return folder


def write_idx(folder: Path, name: str, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    file = folder / "fashion_mnist" / f"{name}-ubyte.gz"
    file.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture
def images(script: Any, data: Path) -> Images:
    return script.load(data)


def a_run(training: Any, **changes: Any) -> Any:
    base = training.Run("batch_norm", norm_batch=2, seed=0, steps=2, batch=4, lr=0.05)
    return replace(base, **changes)


def statistics(model: nn.Module) -> list[torch.Tensor]:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    return [t for one in layers for t in (one.running_mean, one.running_var) if t is not None]


@pytest.mark.parametrize("normalizer", NORMS)
def test_the_net_has_8_layers_on_its_longest_path(training: Any, normalizer: str) -> None:
    model = training.build(a_run(training, normalizer=normalizer))
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = [m for m in weighted if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(weighted) - len(shortcuts) >= 8
    norms = {m: type(m) for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))}
    assert len(norms) == len(weighted) - 1  # all but the last are normalized
    assert set(norms.values()) == {NORMS[normalizer]}


def test_what_the_variants_of_cross_iteration_ask_for(
    training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def convert(model: nn.Module, **options: Any) -> nn.Module:
        asked.update(options)
        return model

    monkeypatch.setattr(training.renorm, "convert", convert)
    special = {}
    for name in training.CROSS_ITERATION:
        asked.clear()
        training.build(a_run(training, normalizer=name, steps=100, window=4, burn_in=7, sample=3))
        assert asked.pop("example").shape == (2, 1, 28, 28)
        common = {"to": "cross_iteration", "window": 4, "burn_in": 7}
        special[name] = dict(asked.items() - common.items())
        assert asked.items() >= common.items()
    assert special == {
        "cbn": {"compensation": "first_order"},
        "cbn_exact": {"compensation": "exact"},
        "cbn_sampled": {"compensation": "first_order", "sample": 3},
        "cbn_uncompensated": {"compensation": "none"},
        "cbn_limits": {"compensation": "first_order", "limits": over(100)},
    }


@pytest.mark.parametrize("normalizer", ["batch_norm", "batch_renorm"])
def test_workers_share_parameters_and_nothing_else(training: Any, normalizer: str) -> None:
    model = training.build(a_run(training, normalizer=normalizer))
    replicas = training.replicas(model, 3)
    assert replicas[0] is model
    for other in replicas[1:]:
        assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    addresses = [t.data_ptr() for one in replicas for t in one.buffers()]
    assert len(set(addresses)) == len(addresses) > 0
    replicas[1](torch.randn(2, 1, 28, 28))
    first, second, third = (statistics(one) for one in replicas)
    assert all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_step_is_gradient_accumulation_over_the_workers(training: Any, images: Images) -> None:
    x, labels = images.train_images[:4].double(), images.train_labels[:4]
    model = training.build(a_run(training)).double()
    reference = training.build(a_run(training)).double()
    reference.load_state_dict(model.state_dict())
    replicas = training.replicas(model, 2)
    loss = training.backward(replicas, x, labels)
    # by hand: batch norm in train mode reads no running statistics, so one net does for both
    scores = torch.cat([reference(x[:2]), reference(x[2:])])
    expected = F.cross_entropy(scores, labels)
    gradients = torch.autograd.grad(expected, list(reference.parameters()))
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    own = [training.build(a_run(training)).double() for _ in range(2)]
    for worker, part, one in zip(replicas, x.chunk(2), own, strict=True):
        one.load_state_dict(reference.state_dict())
        for layer in one.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
        one(part)
        for got, alone in zip(statistics(worker), statistics(one), strict=True):
            torch.testing.assert_close(got, alone)


def test_a_net_is_tested_with_the_means_of_the_workers_statistics(training: Any) -> None:
    replicas = training.replicas(training.build(a_run(training)), 3)
    for worker, x in zip(replicas, torch.randn(3, 2, 1, 28, 28), strict=True):
        worker(x)
    means = [sum(ts) / 3 for ts in zip(*map(statistics, replicas), strict=True)]
    others = [[t.clone() for t in statistics(worker)] for worker in replicas[1:]]
    training.average_statistics(replicas)
    for got, mean in zip(statistics(replicas[0]), means, strict=True):
        torch.testing.assert_close(got, mean)
    for worker, before in zip(replicas[1:], others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(statistics(worker), before, strict=True))


def test_runs_of_a_seed_have_the_same_weights_and_batches(training: Any, images: Images) -> None:
    # group norm does not see how many examples come together, so only a seed makes a difference
    runs = [a_run(training, normalizer="group_norm", norm_batch=n) for n in (4, 2, 1)]
    whole, *parts = (training.train(run, images).loss for run in runs)
    other = training.train(replace(runs[0], seed=1), images).loss
    assert parts == [pytest.approx(whole, rel=1e-5)] * 2
    assert other != pytest.approx(whole, rel=1e-3)


def test_the_weights_of_a_seed_are_those_of_every_normalizer(training: Any) -> None:
    drawn = []
    for normalizer in NORMS:
        torch.manual_seed(0)
        model = training.build(a_run(training, normalizer=normalizer))
        layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        drawn.append([layer.weight for layer in layers])
    for weights in zip(*drawn, strict=True):
        assert all(torch.equal(weights[0], other) for other in weights[1:])


def test_a_run_repeats_itself(training: Any, images: Images) -> None:
    run = a_run(training, normalizer="batch_renorm")
    first, again = (replace(training.train(run, images), seconds=0.0) for _ in range(2))
    assert first == again
    assert first.accuracy is not None
    assert 0 <= first.accuracy <= 1


def test_a_run_that_diverges_says_when(training: Any, script: Any, images: Images) -> None:
    run = a_run(training, normalizer="group_norm", steps=5, lr=1e30)
    figures = training.train(run, images)
    assert figures.accuracy is figures.loss is None
    assert 2 <= figures.diverged_at <= 5
    assert f"diverged at step {figures.diverged_at}" in script.outcome(run, figures)


def test_settings_that_a_normalizer_lacks_do_not_make_another_run(script: Any) -> None:
    def asked(*arguments: str) -> list[Any]:
        return script.wanted(script.parsed(["--seeds", "1", "--norm-batches", "2", *arguments]))

    before, after = asked(), asked("--window", "4", "--burn-in", "7", "--sample", "3")
    changed = [run.normalizer for run, other in zip(before, after, strict=True) if run != other]
    assert changed == [name for name in script.NORMALIZERS if name.startswith("cbn")]


def test_gain_and_drop_by_hand(script: Any) -> None:
    runs = script.wanted(script.parsed(["--seeds", "2", *SMALL]))
    accuracies = {("batch_norm", 4): 0.8, ("batch_norm", 2): 0.5, ("batch_renorm", 4): 0.75}
    found = {
        run: script.Figures(accuracies[key] + run.seed / 10, 1.0, None, 3.0)
        for run in runs
        if (key := (run.normalizer, run.norm_batch)) in accuracies
    }
    diverged = next(r for r in runs if r not in found and r.seed == 0)
    found[diverged] = script.Figures(None, None, 7, 1.0)
    grid = script.table(runs, found, "batch_norm")
    rows = list(zip(*(list(column.cells) for column in grid.columns), strict=True))
    assert [row[:2] for row in rows] == [
        (n, name) for n in ("4", "2") for name in ("batch_norm", "batch_renorm")
    ]
    spread = "± 63.5"  # Student's 12.7 times half the difference of 10 points
    assert rows[0][2:] == (f"85.0 {spread}", "-", "-", "3", "2", "0")
    assert rows[1][2:] == (f"80.0 {spread}", "-5.0 ± 0.0", "-", "3", "2", "0")
    assert rows[2][2:] == (f"55.0 {spread}", "-", "30.0 ± 0.0", "3", "2", "0")
    assert rows[3][2:] == ("-", "-", "-", "1", "1", "1")


def test_an_interrupted_file_is_gone_on_with(
    script: Any, data: Path, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "runs.jsonl"
    settings = ["--data", str(data), *SETTINGS, "--seeds", "1", "--json", str(file)]
    done = command(SCRIPT.name, *settings)
    assert done.code == 0, done.err
    lines = file.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {(r["normalizer"], r["norm_batch"]) for r in records} == {
        (name, n) for name in ("batch_norm", "batch_renorm") for n in (4, 2)
    }
    assert all(record["environment"]["torch"] for record in records)
    file.write_text("\n".join(lines[1:]) + "\n")
    assert script.main([*settings, "--jobs", "1"]) == 0
    *kept, new = file.read_text().splitlines()
    assert kept == lines[1:]
    made = json.loads(new)
    assert made == records[0] | {"seconds": made["seconds"]}
    assert "4 of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["{", "[]", "5", '{"schema": 1}', '{"schema": 2}', "\x00\xff", '{"schema": 1, "norm']
)
def test_another_file_is_refused(script: Any, tmp_path: Path, line: str) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(line + "\n", encoding="latin-1")
    with pytest.raises(ArgumentError, match=r"runs\.jsonl, line 1 is no record"):
        script.read(file)


def test_a_record_with_an_impossible_value_is_refused(script: Any, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    good = {"schema": 1, "normalizer": "batch_norm", "norm_batch": 2, "seed": 0, "steps": 2}
    good |= {"batch": 4, "lr": 0.1, "window": 0, "burn_in": 0, "sample": 0}
    good |= {"accuracy": 0.5, "loss": 1.0, "diverged_at": None, "seconds": 1.0}
    file.write_text(json.dumps(good) + "\n")
    assert script.read(file).popitem()[1].accuracy == 0.5
    for wrong in (
        {"normalizer": "layer"},
        {"norm_batch": 3},
        {"accuracy": None},
        {"accuracy": 50.0},
        {"steps": "2"},
    ):
        file.write_text(json.dumps(good) + "\n" + json.dumps(good | wrong) + "\n")
        with pytest.raises(ArgumentError, match="line 2 is no record"):
            script.read(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norm-batches", "3"], "a multiple of the norm batch, got 32 and 3"),
        (["--normalizers", "batchnorm"], "Did you mean 'batch_norm'"),
        (["--lr", "nan", "--normalizers", "batch_norm"], "above 0, got nan"),
        (["--data", "nowhere", "--normalizers", "batch_norm"], "There is no file nowhere"),
    ],
)
def test_a_mistake_is_a_message(
    script: Any, data: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    assert script.main(["--data", str(data), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
