"""Write the tables of all kept runs into docs/papers.md, below its mark.

    python scripts/papers.py

Each is what ``renorm reproduce NAME --scale laptop --out results/NAME-laptop.jsonl --again
--markdown FILE`` writes; no runs are done, and a study that lacks some has no table.
"""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from renorm import cli
from renorm.lab.papers import STUDIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "papers.md"
MARK = "<!-- Below: scripts/papers.py -->\n"


def tables() -> str:
    """Those of each study that has kept runs, in the order of the studies."""
    found = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.mkdir("results")
        for name in STUDIES:
            out = Path("results") / f"{name}-laptop.jsonl"
            if not (ROOT / out).exists():
                continue
            shutil.copy(ROOT / out, out)
            asked = ["reproduce", name, "--scale", "laptop", "--out", str(out), "--again"]
            with contextlib.redirect_stdout(sys.stderr):
                code = cli.main([*asked, "--markdown", "tables.md"])
            text = Path("tables.md").read_text()
            if code != cli.DONE:
                title = text.partition("\n")[0]
                text = f"{title}\n\nNot all runs are done: there is no verdict before they are.\n"
            found.append(text)
    return "\n".join(found)


if __name__ == "__main__":
    head, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{head}{MARK}\n{tables()}")
