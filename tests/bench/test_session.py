import pytest
import torch
from torch import Tensor, nn

from bench import tiny
from renorm.bench import measurements, peers, session
from renorm.bench.peers import Peer
from renorm.bench.providers import BASELINE, Provider, ours
from renorm.bench.records import Record
from renorm.bench.session import Plan
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm2d


class Wrong(BatchRenorm2d):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input, mask) + 0.01


WRONG = Provider("wrong", lambda shape, limits: Wrong(shape.sizes[1], limits=limits))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.plant(
        monkeypatch,
        tiny.suite("training"),
        tiny.suite("inference", "tiny_eval"),
        tiny.suite("memory", "tiny_memory"),
        tiny.suite("peers", "tiny_peers"),
        tiny.suite("model", "tiny_net"),
    )


def test_a_record_for_each_provider_shape_and_direction() -> None:
    kept: list[Record] = []
    shown: list[session.Progress] = []
    plan = Plan(("tiny",), ("auto", "aten"), full=True, turns=2)
    report = session.run(plan, kept.append, shown.append)
    assert kept == report.records["tiny"]
    assert len(kept) == 2 * 3 * 3
    assert {(r.provider, r.direction) for r in kept} == {
        (provider, direction)
        for provider in (BASELINE, "renorm", "renorm, aten")
        for direction in ("forward", "backward", "both")
    }
    assert [(p.done, p.total, p.now) for p in shown] == [
        (0, 2, "tiny 4x3x5x5"),
        (1, 2, "tiny 2x4x6x6"),
    ]
    for record in kept:
        assert record.turns == 2
        assert record.baseline == BASELINE
        assert record.threads == torch.get_num_threads()
        assert record.allocator == "as it was"
        assert record.environment["torch"] == torch.__version__
        assert record.bytes
        if record.provider == BASELINE:
            assert record.median_ratio == record.min_ratio == 1.0
            assert record.kernel is None
    assert {r.kernel for r in kept if r.provider == "renorm, aten"} == {"aten"}


def test_eval_is_forward_alone_and_memory_counts_tensors() -> None:
    report = session.run(Plan(("tiny_eval", "tiny_memory"), turns=1))
    assert {r.direction for r in report.records["tiny_eval"]} == {"forward"}
    counted = {r.provider: r.median_ratio for r in report.records["tiny_memory"]}
    assert counted == {BASELINE: 1.0, "renorm": 1.0}


def test_a_wrong_layer_is_not_timed() -> None:
    report = session.run(Plan(("tiny",), turns=1), mine=[WRONG, ours("aten")])
    assert {r.provider for r in report.records["tiny"]} == {BASELINE, "renorm, aten"}
    assert len(report.refused) == 1
    assert report.refused[0].startswith("tiny: wrong on 4x8x7x7 float32 contiguous: the output")


def test_with_no_layer_left_nothing_is_measured() -> None:
    report = session.run(Plan(("tiny", "tiny_memory"), turns=1), mine=[WRONG])
    assert report.records == {}
    assert len(report.refused) == 2


def test_ctrl_c_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.interrupt_second(monkeypatch)
    kept: list[Record] = []
    report = session.run(Plan(("tiny",), full=True, turns=1), kept.append)
    assert report.interrupted
    assert {r.shape for r in kept} == {tiny.SIZES[0]}
    assert report.records["tiny"] == kept


def test_a_shape_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measurements.timed

    def failing(suite, shape, *arguments):
        if shape.sizes == tiny.SIZES[0]:
            raise torch.OutOfMemoryError("no memory\nand a long explanation")
        return whole(suite, shape, *arguments)

    monkeypatch.setattr(measurements, "timed", failing)
    report = session.run(Plan(("tiny",), full=True, turns=1))
    assert {r.shape for r in report.records["tiny"]} == {tiny.SIZES[1]}
    assert report.refused == ["tiny 4x3x5x5: no memory"]


def test_peers_are_a_ratio_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(sizes: tuple[int, ...]) -> nn.Module:
        raise peers.UnavailableError("not installed (no such module)")

    known = (Peer("plain", "", lambda s: nn.BatchNorm2d(s[1])), Peer("absent", "", absent))
    monkeypatch.setattr(session, "KNOWN", known)
    report = session.run(Plan(("tiny_peers",), full=True, turns=1))
    records = report.records["tiny_peers"]
    assert {r.provider for r in records} == {"renorm", "plain"}
    assert {r.baseline for r in records} == {"renorm"}
    assert report.absent == {"tiny_peers": ["absent: not installed (no such module)"]}
    assert report.deviations["tiny_peers"]["plain"] < 1e-5


def test_resnet18_with_each_normalizer() -> None:
    report = session.run(Plan(("tiny_net",), turns=1))
    records = report.records["tiny_net"]
    assert {(r.provider, r.direction) for r in records} == {
        (provider, direction)
        for provider in (BASELINE, "renorm")
        for direction in ("forward", "backward", "both")
    }
    assert not report.refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suites": ("nhcw",)}, "There is no suite 'nhcw'. Did you mean 'nchw'?"),
        ({"suites": ("gpu_nhwc_float32",)}, "is for cuda. Pass --device cuda"),
        ({"device": "tpu"}, "device is cpu or cuda, got 'tpu'"),
        ({"turns": 0}, "at least 1, got 0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message.replace("?", r"\?")):
        Plan(**options)


def test_without_a_gpu_there_is_no_gpu_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="torch sees no CUDA device here"):
        Plan(device="cuda")


def test_a_kernel_that_there_is_not() -> None:
    with pytest.raises(ArgumentError, match="There is no kernel 'atn'; there are auto, moving, "):
        session.run(Plan(("tiny",), ("atn",)))


def test_a_kernel_that_does_not_take_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise ArgumentError("The kernel was asked for, but not here.")

    monkeypatch.setattr(session, "kernel_for", refusing)
    report = session.run(Plan(("tiny",), turns=1))
    assert report.refused == ["tiny: renorm: The kernel was asked for, but not here."]
