"""What every page has in common: one file, no network, light and dark, charts drawn at the end."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from renorm.errors import MissingExtraError, RecordError

TEMPLATE = {
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {
            "bgcolor": "var(--paper)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--ink)"},
        },
        "hovermode": "x unified",
        "dragmode": False,
        "showlegend": False,
        "height": 280,
        "margin": {"l": 56, "r": 12, "t": 8, "b": 44},
        "xaxis": {"gridcolor": "var(--line)", "zeroline": False, "automargin": True},
        "yaxis": {"gridcolor": "var(--line)", "zeroline": False, "automargin": True},
    }
}
INSTALL = 'which is not installed. Run: pip install "renorm[lab]"'


def render(
    template: str, figures: Mapping[str, Any], assets: Sequence[str] = (), **context: Any
) -> str:
    """A page as text; the same arguments give the same text.

    All text in ``context`` is escaped. The scripts of the page run, others do not: a content
    security policy names them by their hashes and forbids every request.

    Args:
        template: file in ``templates`` that extends ``base.html``.
        figures: identifier of a chart -> ``data`` and ``layout`` of plotly.js, finite figures only.
        assets: style sheets and scripts in ``templates`` that this page has beyond the common ones.
        context: what the template asks for.

    Raises:
        MissingExtraError: jinja2 or plotly is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    except ImportError as error:
        raise MissingExtraError(f"A page needs jinja2, {INSTALL}") from error
    environment = Environment(
        loader=PackageLoader("renorm.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheets = ["style.css", *(name for name in assets if name.endswith(".css"))]
    own = ["page.js", *(name for name in assets if name.endswith(".js"))]
    scripts = [*([_plotly()] if figures else []), *map(_resource, own)]
    return environment.get_template(template).render(
        style="".join(map(_resource, sheets)),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        figures=_embedded({"template": TEMPLATE, "figures": dict(figures)}),
        **context,
    )


def write(path: Path, text: str) -> None:
    """Write a page.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecordError(
            f"The page {path} cannot be written: {error.strerror}. Give another file, in a folder "
            "that is there."
        ) from error


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError(f"The charts of a page need plotly, {INSTALL}") from error
    return get_plotlyjs().replace("\r\n", "\n")


def _resource(name: str) -> str:
    return (files("renorm.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _embedded(figures: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
