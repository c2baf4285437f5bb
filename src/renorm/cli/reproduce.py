"""``renorm reproduce``: the claims of a paper, held against runs of one's own."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from renorm.cli import DONE, INTERRUPTED, SOME_FAILED
from renorm.cli.compare import WORKERS, page_of
from renorm.cli.progress import Display
from renorm.errors import ArgumentError, RecordError
from renorm.lab.experiment import Result, finish
from renorm.lab.papers import SCALES, STUDIES, Study
from renorm.lab.pool import Site, memory_share
from renorm.lab.store import Store
from renorm.names import known
from renorm.report import reproduction, reproduction_page, reproduction_text
from renorm.report.records import Record, Specification
from renorm.report.reproduction import Reproduction


def reproduce(
    paper: str,
    *,
    scale: str = "smoke",
    seeds: int | None = None,
    data_dir: Path | None = None,
    out: Path | None = None,
    workers: int = WORKERS,
    memory: float | None = None,
    device: str | None = None,
    markdown: Path | None = None,
    again: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Do the runs that a paper's claims stand or fall with, and give a verdict on each claim.

    Papers:

    - `batch-norm`: Ioffe and Szegedy 2015.
    - `batch-renorm`: Ioffe 2017.
    - `cross-iteration`: Yao et al. 2020.
    - `smoothness`: Santurkar et al. 2018, how batch norm helps optimization.
    - `beyond-batchnorm`: Lubana, Dick and Tanaka 2021.
    - `moving-backward`: no paper's, `BatchRenorm2d(backward="moving")` against batch renorm.

    Scales: `smoke` takes a minute, needs no files and decides little; `laptop` takes up to an hour
    and a half on two cores, and reads data sets from files; `gpu` is longer again.

    The verdicts: `reproduced` (the figure reaches what is claimed,
    and its interval excludes the opposite), `direction reproduced` (only the sign is certain, or
    only the mean is within the bounds), `not visible at this scale` (the interval decides
    nothing), `contradicted`.

    Results are kept: a second call does the missing runs only, whatever ended the first.

    To begin with:

    - `renorm reproduce batch-renorm`
    - `renorm reproduce batch-renorm --scale laptop --data-dir data`

    Parameters
    ----------
    paper
        One of the names above.
    scale
        `smoke`, `laptop` or `gpu`.
    seeds
        How many seeds; the scale's own without. One gives no interval, and no verdict.
    data_dir
        Folder of the data sets, as torchvision lays them out; else what the environment variable
        RENORM_DATA says, else `data`.
    out
        Results file: JSON lines, one a run; read first, then appended to. PAPER-SCALE.jsonl
        without. The page lies beside it.
    workers
        Processes that train, one thread each.
    memory
        GiB of data that each process may hold; the machine's divided by workers without, where
        the system can bound it.
    device
        Where nets are trained, such as `cuda`; the CPU without, but for the scale gpu, which asks
        for it.
    markdown
        Write the tables to this file as Markdown, too.
    again
        Do no runs: show what the results file has, which must be there.
    """
    (name,) = known("paper", [paper], {key.replace("-", "_"): key for key in STUDIES})
    study = STUDIES[name.replace("_", "-")]
    (scale,) = known("scale", [scale], {one: one for one in SCALES})
    out = out or Path(f"{study.name}-{scale}.jsonl")
    page = page_of(out)
    if markdown is not None and not markdown.parent.is_dir():
        raise ArgumentError(
            f"The tables go to a file in a folder that is there, got {markdown}. Make the folder "
            "first, or give another file."
        )
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if scale == "gpu" and not again:
        device = device or "cuda"
    store, wanted = Store(out), study.specifications(scale, seeds)
    site = Site(data_dir, workers, memory, device)
    result = _kept(store) if again else _done(wanted, store, site)
    if result.warning:
        messages.print(result.warning)
    done = [result.records[one] for one in wanted if one in result.records]
    count = study.seeds[scale] if seeds is None else seeds
    found = _found(study, scale, count, done, _command(study, scale, seeds, out))
    reproduction_text.show(found, Console())
    reproduction_page.write(page, found)
    messages.print(f"Records: {out}\nPage: {page}")
    if markdown is not None:
        reproduction_text.write(markdown, found)
        messages.print(f"Tables: {markdown}")
    if result.interrupted:
        messages.print("Interrupted. Run the same command again to do the missing runs.")
        return INTERRUPTED
    return DONE if found.complete else SOME_FAILED


def _kept(store: Store) -> Result:
    if not store.path.is_file():
        raise RecordError(
            f"There is no results file {store.path} to show again. Give one by --out, or leave "
            "--again out to do the runs."
        )
    records, warning = store.read()
    return Result(records=records, warning=warning)


def _done(wanted: tuple[Specification, ...], store: Store, site: Site) -> Result:
    if site.memory is None and site.workers > 1:
        site = replace(site, memory=memory_share(site.workers))
    with Display(Console(stderr=True)) as display:
        return finish(wanted, store, site, display)


def _found(
    study: Study, scale: str, seeds: int, records: list[Record], command: str
) -> Reproduction:
    return Reproduction(
        study.name,
        study.title,
        study.source,
        study.about,
        scale,
        seeds,
        study.judge(scale, records),
        reproduction.arms(study.arms(scale), seeds, study.runs(scale, records)),
        tuple(records),
        command,
    )


def _command(study: Study, scale: str, seeds: int | None, out: Path) -> str:
    words = ["renorm", "reproduce", study.name, "--scale", scale]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    return shlex.join([*words, "--out", str(out)])
