"""docs/performance.md: its tables and its plot are made of what was measured, the words around them are written."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGE, FIGURES, PLOT = DOCS / "performance.md", DOCS / "performance.json", DOCS / "performance.svg"
BAR, GAP, LEFT, WIDTH = 16, 6, 190, 720  # pixels of the plot
COLOURS = {"tunnel": "#2b6cb0", "wireguard-go": "#dd8a33", "plain": "#9aa5b1"}


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        part: of the page where it stands.
        rows: the titles first.
    """

    part: str
    title: str
    rows: list[list[str]]


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    with_model = Path("/proc/cpuinfo")
    if with_model.exists() and (found := re.search(r"model name\s*: (.*)", with_model.read_text())):
        model = found[1]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{model}, {os.cpu_count()} processors; {platform.system()} {platform.release()}; {python}; {today}"


def write(new: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]]) -> None:
    """Keep what was measured, with the machine; and put all that is kept into the page."""
    kept: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for part in new.keys() - {"machine"}:
        figures = new[part]
        if part == "clients" and part in kept:  # what was not measured anew stays
            again = {(run["mode"], run["client"]) for run in figures["runs"]}
            older = kept[part]["figures"]["runs"]
            figures["runs"] = [run for run in older if (run["mode"], run["client"]) not in again] + figures["runs"]
        kept[part] = {"machine": new["machine"], "figures": figures}
    kept = rounded(kept)
    FIGURES.write_text(json.dumps(kept) + "\n")
    PAGE.write_text(rendered(PAGE.read_text(), kept, tables))
    if "clients" in kept:
        PLOT.write_text(plot(kept["clients"]["figures"]["runs"]))


def rendered(page: str, kept: dict[str, Any], tables: Callable[[dict[str, Any]], list[Table]]) -> str:
    """The page with these figures."""
    for part, measured in kept.items():
        lines = [f"Measured on {measured['machine']}."]
        if part == "clients":
            lines[0] += f" Server: {measured['figures']['server']}."
        for table in tables({part: measured["figures"]}):
            lines += ["", f"**{table.title}**", "", *markdown(table.rows)]
        page = replaced(page, part, "\n".join(lines))
    return page


def rounded(figures: Any) -> Any:
    """Four digits, so that the file stays small."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [rounded(value) for value in figures]
    return float(f"{figures:.4g}") if isinstance(figures, float) else figures


def replaced(page: str, part: str, text: str) -> str:
    """The page with another text between the marks of a part."""
    before, begin, rest = page.partition(f"<!-- figures: {part} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{begin}{text}\n{end}{after}"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Every row as wide as the first."""
    width = len(rows[0])
    cells = [[*row, *[""] * (width - len(row))] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|---{'|---:' * (width - 1)}|", *lines[1:]]


def plot(runs: Sequence[dict[str, Any]]) -> str:
    """An SVG of the medians: one bar for each variant, for what most want to know of httpx."""
    panels = (("download", "MB/s"), ("upload", "MB/s"), ("rps10", "requests/s"), ("start", "ms"), ("tls-start", "ms"))
    parts: list[str] = []
    y = 30
    for mode, metric in panels:
        mine = [run for run in runs if (run["mode"], run["client"]) == (mode, "httpx") and "trouble" not in run]
        variants = [variant for variant in COLOURS if mine and variant in mine[0]]
        medians = {variant: statistics.median(run[variant][metric] for run in mine) for variant in variants}
        for variant, value in medians.items():
            length = value / max(medians.values()) * (WIDTH - LEFT - 100)
            label = f"{mode}, {metric}" if variant == variants[0] else ""
            middle = y + BAR - 4
            parts.append(f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{label}</text>')
            colour = COLOURS[variant]
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + length + 6:.0f}" y="{middle}">{value:.0f}</text>')
            y += BAR + 2
        y += GAP
    legend = "".join(
        f'<rect x="{LEFT + 140 * at}" y="8" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + 140 * at + 18}" y="18">{variant}</text>'
        for at, (variant, colour) in enumerate(COLOURS.items())
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', legend, *parts, "</svg>", ""])
