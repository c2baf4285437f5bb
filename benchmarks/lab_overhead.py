"""What the lab adds to the bare training loop that it stands for.

``renorm.lab.training.run`` trains a net on scikit-learn's digits, and so does a loop written out
here: the same net, batches, optimizer and schedule, tested as often. Both are timed as processor
time, in turns, and must end with the same accuracy, bit for bit. ``loop`` is the lab's training
loop alone, with its bookkeeping; ``run`` also judges the trained net in both modes, which the bare
loop does not do, and takes the same time however long the run is.

    python benchmarks/lab_overhead.py
    python benchmarks/lab_overhead.py --normalizer batch_renorm --json overhead.jsonl
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch.nn import functional as F

from renorm.environment import describe
from renorm.lab import training
from renorm.lab.conditions import Shuffled
from renorm.lab.data import digits
from renorm.lab.isolation import isolated
from renorm.lab.models import ConvNet
from renorm.lab.normalizers import NORMALIZERS, Setting
from renorm.lab.streams import ORDER, stream
from renorm.lab.tasks.fitting import POINTS, fit, normalized
from renorm.lab.tasks.supervised import MOMENTUM, WEIGHT_DECAY, Supervised
from renorm.report.records import Specification

SCHEMA = 1
TARGET = 1.03


def bare(run: Specification) -> float:
    """The loop that a person would write for one run; the accuracy at its end."""
    images = digits()
    with isolated(run.seed):
        setting = Setting(None, run.steps, images.train_images[:2])
        model = NORMALIZERS[run.normalizer].apply(ConvNet(images.classes), setting)
        optimizer = torch.optim.SGD(model.parameters(), run.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.steps)
        order = stream(run.seed, ORDER)
        batches = Shuffled(run.batch_size, run.batch_size).batches(images.train_labels, order)
        marks = {math.ceil(run.steps * part / POINTS) for part in range(1, POINTS + 1)}
        accuracy = 0.0
        for step, indices in enumerate(islice(batches, run.steps), start=1):
            loss = F.cross_entropy(
                model(images.train_images[indices]), images.train_labels[indices]
            )
            if not math.isfinite(loss.item()):
                raise ArithmeticError(f"the loss is not finite at step {step}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step in marks:
                model.eval()
                with torch.no_grad():
                    hits = model(images.test_images).argmax(1) == images.test_labels
                accuracy = int(hits.sum()) / len(hits)
                model.train()
    return accuracy


def loop(run: Specification) -> float:
    """The lab's training loop; the accuracy at its end."""
    plan, task = training.plan(run), training.task_of(run)
    assert isinstance(task, Supervised)
    with isolated(run.seed):
        problem = task.problem(plan)
        model = normalized(task.model(), plan, problem.train)
        return fit(model, task.optimizer(model, run.lr), problem, plan).curve[-1][1]


def whole(run: Specification) -> float | None:
    """The run as the lab does it; the accuracy at its end."""
    return training.run(run).score


WAYS = {"bare": bare, "loop": loop, "run": whole}


def measure(run: Specification, turns: int) -> dict[str, list[float]]:
    """Seconds of processor time of each, turn by turn.

    Raises:
        ArithmeticError: they did not do the same work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns + 1):
        results = {}
        for name, train in WAYS.items():
            started = time.process_time()
            results[name] = train(run)
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - started)
        if len(set(results.values())) > 1:
            raise ArithmeticError(f"They do not do the same work: accuracies {results}.")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line, and keep a record if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--normalizer", default="batch_norm", choices=list(NORMALIZERS), help="(batch_norm)")
    add("--steps", type=int, default=1000, help="of a run (1000)")
    add("--turns", type=int, default=7, help="runs of each that are timed (7)")
    add("--json", type=Path, help="file that a record is appended to")
    options = parser.parse_args(arguments)
    normalizer, steps = options.normalizer, options.steps
    run = Specification("digits", "convnet", normalizer, "iid", 0, steps, 0.1, 32, 4)
    seconds = measure(run, options.turns)
    ratios = {
        name: [pick(seconds[name]) / pick(seconds["bare"]) for pick in (statistics.median, min)]
        for name in ("loop", "run")
    }
    print(f"{normalizer}, {steps} steps, bare {statistics.median(seconds['bare']):.2f} s")
    for name, (middle, least) in ratios.items():
        print(f"{name} / bare: {middle:.3f} of medians, {least:.3f} of minima")
    print(f"target: at most {TARGET}")
    if options.json:
        record = {
            "schema": SCHEMA,
            "normalizer": normalizer,
            "steps": steps,
            "seconds": seconds,
            "ratios": ratios,
            "environment": describe(),
        }
        with options.json.open("a") as file:
            file.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
