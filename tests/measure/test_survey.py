"""What a survey accepts, says of the layers, and refuses; that it saves and loads."""

import ast
import gc
import tracemalloc
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from surveyed import images, mixed, rows
from torch import Tensor, nn

from renorm import (
    BatchRenorm1d,
    CrossIterationBatchNorm1d,
    LazyBatchRenorm1d,
    convert,
    freeze,
    limits,
)
from renorm.errors import ArgumentError, RecordError
from renorm.measure import records, saving, survey
from renorm.measure.records import BatchNoise, LayerFacts, Note
from support.torchvision_shim import timm, torchvision_models


def model() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


@dataclass
class Pair:
    x: Tensor
    y: Tensor


Named = namedtuple("Named", ["x", "y"])


class Detector(nn.Module):
    """Takes a dataclass, gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, batch: Pair) -> dict[str, Any]:
        return {"scores": self.inner(batch.x), "name": "scores"}


@pytest.mark.parametrize(
    ("made", "wrap"),
    [
        (model, lambda x: x),
        (model, lambda x: (x, x[:, 0])),
        (model, lambda x: [x, x[:, 0]]),
        (model, lambda x: Named(x, x[:, 0])),
        (model, lambda x: {"input": x}),
        (Detector, lambda x: Pair(x, x[:, 0])),
    ],
    ids=["tensor", "tuple", "list", "namedtuple", "dict", "dataclass"],
)
def test_batches_in_each_form(made: Any, wrap: Any) -> None:
    torch.manual_seed(0)
    expected = survey(model_of(made), rows(6)).of(BatchNoise)
    torch.manual_seed(0)
    found = survey(made(), [wrap(x) for x in rows(6)])
    assert [replace(one, layer="1") for one in found.of(BatchNoise)] == list(expected)
    assert (found.batches, found.examples, found.complete) == (6, 48, True)


def model_of(made: Any) -> Any:
    return made().inner if made is Detector else made()


def test_forward_calls_the_model_in_any_other_way() -> None:
    batches = [{"image": x, "mask": None} for x in rows(4)]
    found = survey(model(), batches, forward=lambda model, batch: model(batch["image"]))
    assert found.examples == 32


def test_generators_serve_and_may_end_early() -> None:
    found = survey(model(), (x for x in rows(20)))
    assert found.batches == 20
    assert found.complete


def test_facts_of_a_model() -> None:
    found = survey(mixed().train(), images(2))
    facts = {one.layer: one for one in found.of(LayerFacts)}
    assert list(found.layers()) == ["1", "5", "6", "9", "10"]
    assert facts["1"] == LayerFacts(
        layer="1",
        type="BatchNorm2d",
        channels=4,
        eps=1e-5,
        momentum=0.1,
        affine=True,
        statistics="updated",
        training=True,
        updates=0,
        limits="batch norm",
        r_max=1.0,
        d_max=0.0,
        microbatch=None,
        sync="",
        learns=True,
        dtype="float64",
        input_dtype="float64",
        source="0",
        source_bias=True,
        names=("1",),
        calls=1,
    )
    assert (facts["5"].source, facts["5"].source_bias) == ("4", False)
    assert (facts["5"].r_max, facts["5"].d_max, facts["5"].microbatch) == (1.5, 0.3, 2)
    assert (facts["6"].statistics, facts["6"].momentum) == ("frozen", None)
    assert facts["6"].source == "5"
    assert not facts["9"].affine
    assert not facts["6"].learns


def test_facts_of_a_shared_layer() -> None:
    norm = nn.BatchNorm1d(3)
    shared = nn.Sequential(norm, nn.Linear(3, 3), nn.ReLU(inplace=True), norm).double()
    (facts,) = survey(shared, rows(2)).of(LayerFacts)
    assert (facts.names, facts.calls) == (("0", "3"), 2)
    assert (facts.source, facts.source_bias) == (None, None)  # not that of one of its calls


class Twice(nn.Module):
    """A norm behind two layers."""

    def __init__(self, *, one: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second = self.first if one else nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.norm(self.first(x))))


@pytest.mark.parametrize("one", [True, False])
def test_a_source_is_that_of_all_calls(one: bool) -> None:
    (facts,) = survey(Twice(one=one).double(), rows(2)).of(LayerFacts)
    assert facts.calls == 2
    assert (facts.source, facts.source_bias) == (("first", True) if one else (None, None))


def test_a_bias_of_features_that_are_no_channels() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    (facts,) = survey(model, [torch.stack([x, x, x], 1) for x in rows(2)]).of(LayerFacts)
    assert (facts.source, facts.source_bias) == ("0", False)


def test_a_function_between_hides_the_source() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x).relu_())

    (facts,) = survey(Model().double(), rows(2)).of(LayerFacts)
    assert (facts.source, facts.source_bias) == (None, None)


def test_layers_of_timm_and_torchvision() -> None:
    batches = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    net = timm().create_model("efficientnet_b0", num_classes=3)
    found = survey(net, batches, quantities="batch_noise")
    types = {one.type for one in found.of(LayerFacts)}
    assert types == {"BatchNormAct2d"}
    assert len(found.of(BatchNoise)) == len(found.of(LayerFacts)) == 49
    from torchvision.ops import FrozenBatchNorm2d

    net = torchvision_models().resnet18(norm_layer=FrozenBatchNorm2d, num_classes=3)
    found = survey(net, batches, quantities="batch_noise")
    assert {one.statistics for one in found.of(LayerFacts)} == {"frozen"}
    assert len(found.of(BatchNoise)) == 20


def test_a_compiled_model_has_the_names_of_its_own() -> None:
    inner = model()
    compiled: Any = torch.compile(inner, backend="eager")
    compiled(rows(1)[0])
    found = survey(compiled, rows(3))
    assert found == survey(inner, rows(3))
    assert list(found.layers()) == ["1"]


def test_half_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        batches = [x.to(dtype) for x in rows(3)]
        (found,) = survey(model().to(dtype), batches).of(BatchNoise)
        assert found.d_rms is not None


def test_a_layer_that_no_batch_reaches_is_noted() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    found = survey(Model().double(), rows(2))
    assert Note("other", "survey", "No batch reached the layer.") in found.of(Note)
    assert [one.layer for one in found.of(BatchNoise)] == ["norm"]


def test_every_kind_of_ours() -> None:
    made = nn.Sequential(
        BatchRenorm1d(3),
        nn.Linear(3, 3),
        CrossIterationBatchNorm1d(3, window=3, compensation="none"),
        freeze(BatchRenorm1d(3, limits=limits.fixed(torch.inf, torch.inf))),
    ).double()
    found = survey(made, rows(6))
    assert [one.statistics for one in found.of(LayerFacts)] == ["updated", "updated", "frozen"]
    assert saving.from_lines(saving.to_lines(found)) == found


def test_progress() -> None:
    steps: list[tuple] = []
    survey(model(), rows(2), quantities="batch_noise", progress=lambda *step: steps.append(step))
    assert steps == [("train mode", 1, 2), ("train mode", 2, 2)]


def test_saved_and_loaded(tmp_path: Any) -> None:
    found = survey(convert(mixed()), images(3))
    path = tmp_path / "survey.jsonl"
    saving.save(found, path)
    assert saving.load(path) == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('{"schema": 2}', "schema is not 1"),
        ('{"schema": 1, "kind": "Finding"}', "kind is 'Finding'"),
        ('{"schema": 1, "kind": "Note", "layer": "1"}', "missing or unknown.*quantity, reason"),
        (
            '{"schema": 1, "kind": "Note", "layer": "1", "quantity": 3, "reason": ""}',
            "quantity of its note is 3, which is not of type str",
        ),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Any, line: str, message: str) -> None:
    head = next(saving.to_lines(survey(model(), rows(2))))
    path = tmp_path / "survey.jsonl"
    path.write_text(f"{head}\n{line}\n")
    with pytest.raises(RecordError, match=message):
        saving.load(path)
    path.write_text('{"schema": 1, "kind": "Note"}\n')
    with pytest.raises(RecordError, match="head of a survey"):
        saving.load(path)


@pytest.mark.parametrize(
    ("made", "batches", "options", "message"),
    [
        (nn.ReLU, rows(1), {}, "ReLU has no normalization layer"),
        (LazyBatchRenorm1d, rows(1), {}, r"first input: \(model\). Initialize"),
        (model, [], {}, "no batch to measure by"),
        (model, iter([]), {}, "no batch to measure by"),
        (model, rows(1)[0], {}, r"got Tensor. For a single batch give \[batch\]"),
        (model, rows(1), {"depth": "full"}, "depth is 'quick', 'standard', 'deep', got 'full'"),
        (model, rows(1), {"quantities": "noise"}, "quantities are among .*got 'noise'"),
        (model, rows(1), {"quantities": []}, "quantities are among"),
        (lambda: model().to("meta"), rows(1), {}, "meta device and have no values: 1. Give the"),
        (lambda: torch.jit.script(model()), rows(1), {}, "the model from before torch.jit"),
        (model, rows(1), {"loss": 3}, r"loss is called, \(output, batch\) -> a number, got 3"),
        (model, rows(1), {"forward": "x"}, r"forward is called, \(model, batch\) -> .* got 'x'"),
        (model, rows(1), {"progress": 1}, "progress is called, .* got 1"),
        (model, rows(1), {"seed": -1}, "seed is a whole number from 0 on, got -1"),
        (model, rows(1), {"seed": 1.5}, "seed is a whole number from 0 on, got 1.5"),
        (model, rows(1), {"loss": lambda y, _: y.mean(1)}, r"one number a batch, got Tensor of sh"),
        (model, rows(1), {"loss": lambda y, _: None}, "one number a batch, got NoneType. Return"),
        (model, rows(1), {"loss": lambda y, _: {"a": 1}}, "one number a batch, got dict"),
        (model, rows(1), {"loss": lambda y, _: 1j * y.mean()}, "one number a batch, got Tensor"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_refused(made: Any, batches: Any, options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        survey(made(), batches, **options)


def test_what_is_kept_does_not_grow_with_the_batches() -> None:
    def held(count: int) -> tuple[int, int]:
        """Tensors, and traced bytes, when the last batch has been through."""
        found = []

        def batches() -> Any:
            for _ in range(count):
                yield torch.randn(256, 3, dtype=torch.float64)
            gc.collect()
            tensors = sum(issubclass(type(one), Tensor) for one in gc.get_objects())
            found.append((tensors, tracemalloc.get_traced_memory()[0]))

        tracemalloc.start()
        try:
            survey(model(), batches(), lambda y, x: y.square().mean())
        finally:
            tracemalloc.stop()
        return found[0]

    held(40)  # whatever is made once and stays
    few, many = held(60), held(180)
    assert many[0] <= few[0]
    # the means of the examples of 120 batches more would be 983,040 bytes
    assert many[1] < few[1] + 60_000


def test_records_and_saving_import_no_torch() -> None:
    for module in (records, saving):
        tree = ast.parse(Path(module.__file__ or "").read_text())
        imported = {
            name
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not [name for name in imported if name.split(".")[0] == "torch"]
