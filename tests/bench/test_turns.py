import ctypes

import pytest
import torch
from torch import nn

from renorm.bench import allocator, timing
from renorm.bench.timing import Clock, CudaClock, Marks, Step, Times


class Counting(Clock):
    """A clock that ticks once a mark."""

    def __init__(self) -> None:
        self.now = 0
        self.settled = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def settle(self) -> None:
        self.settled += 1

    def between(self, start: int, end: int) -> float:
        return float(end - start)


def noting(name: str, calls: list[str]) -> Step:
    def step(clock: Clock) -> Marks:
        calls.append(name)
        return [clock.mark(), clock.mark(), clock.mark()]

    return step


def test_everyone_takes_every_place_in_the_order() -> None:
    calls: list[str] = []
    steps = {name: noting(name, calls) for name in "abc"}
    found, turns = timing.interleaved(steps, Counting(), 0.0, 3)
    assert turns == 3
    assert "".join(calls[3 * timing.WARMUP :]) == "abcbcacab"
    assert found == {name: [[1.0, 1.0]] * 3 for name in "abc"}


def test_a_short_budget_still_has_a_few_turns() -> None:
    calls: list[str] = []
    clock = Counting()
    _, turns = timing.interleaved({"a": noting("a", calls)}, clock, 0.0)
    assert turns == timing.FEWEST
    assert clock.settled == 3


def test_medians_and_minima_of_each_direction() -> None:
    turns = [[1.0, 2.0], [3.0, 1.0], [2.0, 6.0]]
    assert timing.summarized(turns) == {
        "forward": Times(2.0, 1.0),
        "backward": Times(2.0, 1.0),
        "both": Times(4.0, 3.0),
    }
    assert timing.summarized([[2.0], [4.0]]) == {"forward": Times(3.0, 2.0)}


def test_a_training_step_has_fresh_gradients() -> None:
    layer = nn.BatchNorm2d(3)
    x, dy = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    step = timing.training(layer, x, dy)
    assert len(step(Counting())) == 3
    assert layer.bias.grad is not None
    once = layer.bias.grad.clone()
    step(Counting())
    assert torch.equal(layer.bias.grad, once)
    assert int(layer.num_batches_tracked or 0) == 2
    assert x.grad is None


def test_inference_is_in_eval_mode_without_a_graph() -> None:
    layer = nn.BatchNorm2d(3)
    assert len(timing.inference(layer, torch.randn(4, 3, 5, 5))(Counting())) == 2
    assert not layer.training
    assert int(layer.num_batches_tracked or 0) == 0


def test_the_clock_of_a_gpu_reads_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0

        def record(self) -> None:
            Event.made += 1
            self.at = Event.made

        def elapsed_time(self, end: "Event") -> float:
            return float(end.at - self.at)

    waits: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    clock = timing.clock("cuda")
    assert isinstance(clock, CudaClock)
    steps = {name: noting(name, []) for name in "ab"}
    found, _ = timing.interleaved(steps, clock, 0.0, 2)
    assert found == {"a": [[1.0, 1.0]] * 2, "b": [[1.0, 1.0]] * 2}
    assert waits == [1]


class Library:
    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return self.answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [(1, "glibc, freed pages are kept"), (0, "glibc, which refused to keep freed pages")],
)
def test_the_allocator_is_asked_to_keep_pages(
    answer: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(answer)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert allocator.keep_freed_pages() == said
    assert library.calls[0] == (-4, 0)


def test_another_c_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_pages() == (
        "left as it is: its settings can be changed in glibc alone"
    )
