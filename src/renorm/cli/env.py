"""``renorm env``: what is installed, and which kernel each kind of input would use."""

import json
import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from renorm import kernels
from renorm.cli import DONE
from renorm.environment import OPTIONAL, describe, installed
from renorm.kernels import Call

C = 4


@dataclass(frozen=True)
class Served:
    """One kind of input on one device, and the kernel that would take it."""

    device: str
    input: str
    kernel: str
    reason: str


def env(*, json: bool = False) -> int:
    """Show versions, devices, and which kernel each kind of input would use and why.

    Put the output into a bug report.

    Parameters
    ----------
    json
        Print one JSON object instead of tables.
    """
    facts = collect()
    if json:
        _print_json(facts)
    else:
        _print_tables(facts)
    return DONE


def collect() -> dict[str, Any]:
    """Everything ``renorm env`` shows, as JSON's types."""
    return {
        "versions": {
            **{name: value for name, value in describe().items() if name != "platform"},
            **{name: installed(name) for name in OPTIONAL},
        },
        "platform": platform.platform(),
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "kernels": [asdict(entry) for device in devices() for entry in served(device)],
    }


def devices() -> dict[str, str]:
    """Name and description of each device torch can use here."""
    found = {"cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"}
    for index in range(torch.cuda.device_count()):
        found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found


def served(device: str) -> list[Served]:
    """The kernel for each kind of input to a training batch renorm layer on ``device``."""
    image = torch.zeros(8, C, 6, 6, device=device)
    kinds = {
        "(N, C) float32": _call(image[:, :, 0, 0].contiguous()),
        "(N, C, H, W) float32": _call(image),
        "(N, C, H, W) channels_last": _call(image.to(memory_format=torch.channels_last)),
        "(N, C, H, W) bfloat16": _call(image.bfloat16()),
        "with a mask": _call(image, mask=torch.ones(8, 6, 6, dtype=torch.bool, device=device)),
        "with microbatch=2": _call(image, microbatch=2),
    }
    return [Served(device, kind, *kernels.choose(call)) for kind, call in kinds.items()]


def _call(x: Tensor, mask: Tensor | None = None, microbatch: int | None = None) -> Call:
    zeros, ones = x.new_zeros(C, dtype=torch.float32), x.new_ones(C, dtype=torch.float32)
    return Call(x, zeros, ones, ones, zeros, 3.0, 5.0, 0.01, 1e-5, mask, microbatch)


def _print_json(facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2)
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _print_tables(facts: dict[str, Any]) -> None:
    console = Console(highlight=False)
    versions = Table("package", "version", box=None, pad_edge=False)
    for name, version in facts["versions"].items():
        absent = "unknown" if name == "commit" else "not installed"
        versions.add_row(name, version or absent)
    console.print(versions)
    console.print()
    console.print(f"platform  {facts['platform']}", markup=False)
    for device, about in facts["devices"].items():
        console.print(f"device    {device}: {about}", markup=False)
    console.print(f"threads   {facts['threads']}")
    console.print()
    chosen = Table(
        "device", "input to a layer in training", "kernel", "why", box=None, pad_edge=False
    )
    for entry in facts["kernels"]:
        chosen.add_row(*entry.values())
    console.print(chosen)
