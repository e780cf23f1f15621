"""What the tunnel costs HTTP clients: each client with it, and without it to the same web server, by turns.

    nox -s bench -- --clients httpx aiohttp --modes get download --rounds 5 --json figures.json
    nox -s bench -- --layers
    nox -s bench -- --scale
    nox -s bench -- --simulated
    nox -s bench -- --report

Every measurement is a process of its own. The table has the median of the rounds, and their range. "x" is how many
times as long the tunnel takes: the median of the ratios within a round. With root there is a third variant: without a
tunnel of its own through an interface of wireguard-go, whose time is not in the client's.

`--layers` measures the parts of the engine by themselves (layers.py), `--scale` many connections and many tunnels
(scale.py), `--simulated` TCP over simulated networks (simulated.py). `--report` measures all of it but the last and
writes docs/performance.md (report.py); `--report layers` measures only that part anew, `--report page` nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks import layers, report, scale
from tests.benchmarks.bench_client import CLIENTS
from tests.benchmarks.bench_server import Server, opened_server
from tests.benchmarks.simulated import measured
from tests.benchmarks.simulated import table as goodput_table

TIMEOUT = 120.0  # seconds for one measurement
PARTS = ("clients", "layers", "scale")  # of the report
HTTPX = ("httpx", "httpx-asyncio")

Run = dict[str, Any]  # "round", "mode", "client", "trouble" if any; by variant, the metrics


@dataclass(frozen=True)
class Mode:
    """
    Attributes:
        metrics: that bench_client returns; "x" compares the first.
        measure: what bench_client is to do, if it is not the mode's name.
        clients: that it is for.
        https: by TLS.
    """

    title: str
    metrics: tuple[str, ...]
    measure: str | None = None
    clients: tuple[str, ...] = tuple(CLIENTS)
    https: bool = False
    job: dict[str, Any] = field(default_factory=dict)


def _busy(connections: int) -> Mode:
    title = f"1 KB GETs on kept-alive connections, {connections} at once"
    return Mode(title, ("requests/s", "CPU us"), "busy", HTTPX, job={"connections": connections})


MODES = {
    "get": Mode("1 KB GET on a kept-alive connection", ("us", "CPU us")),
    "rps1": _busy(1),
    "rps10": _busy(10),
    "rps50": _busy(50),
    "download": Mode("Download of a large body", ("MB/s", "CPU s/GB", "peak MB")),
    "upload": Mode("Upload of a large body", ("MB/s", "CPU s/GB", "peak MB")),
    "start": Mode("Process start to first response", ("ms",)),
    "tls-get": Mode("1 KB GET over https", ("us", "CPU us"), "get", HTTPX, https=True),
    "tls-download": Mode("Download over https", ("MB/s", "CPU s/GB", "peak MB"), "download", HTTPX, https=True),
    "tls-start": Mode("Process start to first response over https", ("ms",), "start", HTTPX, https=True),
    "import": Mode("Import, and how many modules that loads", ("ms", "modules"), clients=("httpx",)),
    "memory": Mode(
        "Memory after the first request, and of each connection more", ("MB", "KB a connection"), None, ("httpx",)
    ),
    "idle": Mode("Processor's time of an idle tunnel with a keep-alive each second", ("CPU us/s",), None, ("httpx",)),
}


def measure(server: Server, conf: Path, mode: str, client: str, seconds: float, number: int) -> Run:
    """All variants, right after each other."""
    run: Run = {"round": number, "mode": mode, "client": client}
    scheme = "https" if MODES[mode].https else "http"
    for variant in list(server.hosts)[:: -1 if number % 2 else 1]:
        job = {"client": client, "measure": MODES[mode].measure or mode, "size": server.size, **MODES[mode].job}
        job |= {"seconds": seconds, "authority": server.authority if MODES[mode].https else None}
        job["conf"] = str(conf) if variant == "tunnel" else None
        job |= {name: f"{scheme}://{server.hosts[variant]}{path}" for name, path in server.paths.items()}
        job["started"] = time.monotonic()
        command = (*server.command, sys.executable, "-m", "tests.benchmarks.bench_client", json.dumps(job))
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
            run[variant] = json.loads(done.stdout)
        except subprocess.CalledProcessError as error:
            run["trouble"] = error.stderr.strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired as error:
            run["trouble"] = str(error)
    print(json.dumps(run), file=sys.stderr)
    return run


def table(runs: Sequence[Run], mode: str) -> list[list[str]]:
    """Titles, and a row for each client."""
    good = [run for run in runs if run["mode"] == mode and "trouble" not in run]
    variants = [key for key in (good[0] if good else ()) if key not in ("round", "mode", "client")]
    variants.sort(key=["tunnel", "wireguard-go", "plain"].index)
    metrics = [metric for metric in MODES[mode].metrics if good and metric in good[0]["tunnel"]]
    rows = [["client", *(f"{variant} {metric}" for metric in metrics for variant in variants), "x"]]
    for client in MODES[mode].clients:
        mine = [run for run in good if run["client"] == client]
        if mine:
            cells = [spread([run[variant][metric] for run in mine]) for metric in metrics for variant in variants]
            rows.append([client, *cells, spread([slowdown(run, metrics[0]) for run in mine])])
        troubles = [
            run["trouble"] for run in runs if (run["client"], run["mode"]) == (client, mode) and "trouble" in run
        ]
        if troubles:
            rows.append([client, f"{len(troubles)} times: {troubles[0]}"])
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max((len(row[at]) for row in rows if len(row) > 2), default=0) for at in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def slowdown(run: Run, metric: str) -> float:
    """1 where both are nothing."""
    tunnel, plain = run["tunnel"][metric], run["plain"][metric]
    ratio: float = (tunnel or 1e-9) / (plain or 1e-9)
    return 1 / ratio if metric.endswith("/s") and not metric.startswith("CPU") else ratio


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    numbers = statistics.median(values), min(values), max(values)
    return "{} [{}-{}]".format(*(f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in numbers))


def simulated(json_file: Path | None) -> None:
    figures = measured()
    print(goodput_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


def measured_clients(options: argparse.Namespace) -> dict[str, Any]:
    """Every client in every mode, round by round."""
    with TemporaryDirectory(prefix="httpx-wireguard-") as directory:
        conf = Path(directory, "wg0.conf")
        processors = sorted(os.sched_getaffinity(0)) if options.pin else []
        if options.pin:
            os.sched_setaffinity(0, processors[::2])  # for the servers: what is started inherits it
        with opened_server(conf) as server:
            if options.pin:
                os.sched_setaffinity(0, processors[1::2])
            runs = [
                measure(server, conf, mode, client, options.seconds, number)
                for number in range(options.rounds)
                for mode in options.modes
                for client in options.clients
                if client in MODES[mode].clients and (server.authority or not MODES[mode].https)
            ]
    return {"server": server.description, "runs": runs}


def tables(figures: dict[str, Any]) -> list[report.Table]:
    """Of whatever parts there are."""
    found: list[report.Table] = []
    if "clients" in figures:
        runs = figures["clients"]["runs"]
        modes = [mode for mode in MODES if any(run["mode"] == mode for run in runs)]
        found += [report.Table("clients", MODES[mode].title, table(runs, mode)) for mode in modes]
    if "layers" in figures:
        found += layers.tables(figures["layers"], spread)
    if "scale" in figures:
        found += scale.tables(figures["scale"], spread)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for a process's small requests")
    parser.add_argument("--pin", action="store_true", help="servers and clients on processors of their own (Linux)")
    parser.add_argument("--layers", action="store_true", help="the parts of the engine, and nothing else")
    parser.add_argument("--scale", action="store_true", help="many connections and tunnels, and nothing else")
    parser.add_argument("--simulated", action="store_true", help="TCP over simulated networks, and nothing else")
    parser.add_argument(
        "--report", nargs="*", choices=(*PARTS, "page"), help="write docs/performance.md; measure these"
    )
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    if options.simulated:
        simulated(options.json)
        return
    parts = [part for part in ("layers", "scale") if getattr(options, part)] or ["clients"]
    if options.report is not None:
        parts = options.report or list(PARTS)
    figures: dict[str, Any] = {"machine": report.machine()}
    if "clients" in parts:
        figures["clients"] = measured_clients(options)
    if "layers" in parts:
        figures["layers"] = layers.measured(options.rounds)
    if "scale" in parts:
        figures["scale"] = scale.measured(options.rounds)
    print(figures["machine"])
    for each in tables(figures):
        print(f"\n{each.title}\n\n{aligned(each.rows)}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.report is not None:
        report.write(figures, tables)


if __name__ == "__main__":
    main()
