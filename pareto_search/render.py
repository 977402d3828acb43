"""Figures and pages as files: HTML that opens with no network, and PNG through a real browser."""

from pathlib import Path

import plotly.graph_objects as go

from pareto_search.errors import ConfigError, RunError
from pareto_search.plots import CONFIG

_SHARPNESS = 2
"""Pixels of a PNG for each of the figure's: the second is for dense screens."""
_NO_PNG = (
    "PNG needs the 'png' extra and Chrome or Chromium: pip install 'pareto-search[png]' "
    "and apt-get install chromium; or write .html"
)


def write(content: go.Figure | str, path: Path) -> None:
    """Writes a figure as a page of its own (.html) or a picture (.png, twice the figure's size), or a page as it is.

    Raises:
        ConfigError: the suffix is another, or a page was to become a picture.
        RunError: the file cannot be written; or Kaleido, or the browser that it drives, is missing.
    """
    if path.suffix == ".html":
        page = content if isinstance(content, str) else content.to_html(include_plotlyjs=True, config=CONFIG)
        data = str(page).encode()
    elif path.suffix == ".png" and not isinstance(content, str):
        data = _png(content)
    else:
        raise ConfigError(f"cannot write '{path.name}'; expected a name that ends in .html, or .png for a figure")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RunError(
            f"cannot write '{path}' ({error.strerror}); expected a file name in a folder that exists and has room"
        ) from None


def _png(figure: go.Figure) -> bytes:
    try:
        import kaleido  # type: ignore[import-untyped]
        from kaleido.errors import BrowserFailedError, ChromeNotFoundError  # type: ignore[import-untyped]
    except ImportError:
        raise RunError(_NO_PNG) from None
    # A picture has no page behind it: it brings its own white, and ink instead of the mid-tone.
    figure = go.Figure(figure).update_layout(paper_bgcolor="white", font_color="#27303a")
    options = {
        "format": "png",
        "width": figure.layout.width or 1000,
        "height": figure.layout.height or 600,
        "scale": _SHARPNESS,
    }
    try:
        # Kaleido's page would load MathJax from the network.
        return bytes(kaleido.calc_fig_sync(figure, opts=options, kopts={"mathjax": False}))
    except (ChromeNotFoundError, BrowserFailedError):
        raise RunError(_NO_PNG) from None
