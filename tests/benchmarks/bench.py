"""What the tunnel costs HTTP clients: each client with it, and without it to the same web server, by turns.

    nox -s bench -- --clients httpx aiohttp --modes get download --rounds 5 --json figures.json
    nox -s bench -- --simulated

Every measurement is a process of its own. The table has the median of the rounds, and their range. "x" is how many
times as long the tunnel takes: the median of the ratios within a round. `--simulated` measures no client, but TCP over
simulated networks: see simulated.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.bench_client import CLIENTS
from tests.benchmarks.bench_server import Server, opened_server
from tests.benchmarks.simulated import measured
from tests.benchmarks.simulated import table as goodput_table

VARIANTS = ("tunnel", "plain")
MODES = {  # the title, and the metrics that bench_client returns; "x" compares the first
    "get": ("1 KB GET on a kept-alive connection", ("us", "CPU us")),
    "download": ("Download of a large body", ("MB/s", "CPU s/GB")),
    "upload": ("Upload of a large body", ("MB/s", "CPU s/GB")),
    "start": ("Process start to first response", ("ms",)),
}
TIMEOUT = 120.0  # seconds for one measurement

Run = dict[str, Any]  # "round", "mode", "client", "trouble" if any; by variant, the metrics


def measure(server: Server, conf: Path, mode: str, client: str, seconds: float, number: int) -> Run:
    """Both variants, right after each other."""
    run: Run = {"round": number, "mode": mode, "client": client}
    for variant in VARIANTS[:: -1 if number % 2 else 1]:
        job = {"client": client, "mode": mode, "size": server.size, "seconds": seconds, "started": time.monotonic()}
        job["conf"] = str(conf) if variant == "tunnel" else None
        job |= {name: f"http://{server.hosts[variant]}{path}" for name, path in server.paths.items()}
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


def table(runs: Sequence[Run], mode: str) -> str:
    """Titles, and a row for each client."""
    metrics = MODES[mode][1]
    rows = [["client", *(f"{variant} {metric}" for metric in metrics for variant in VARIANTS), "x"]]
    for client in CLIENTS:
        mine = [run for run in runs if (run["client"], run["mode"]) == (client, mode)]
        good = [run for run in mine if "trouble" not in run]
        if good:
            cells = [spread([run[variant][metric] for run in good]) for metric in metrics for variant in VARIANTS]
            rows.append([client, *cells, spread([slowdown(run, metrics[0]) for run in good])])
        if len(good) < len(mine):
            trouble = next(run["trouble"] for run in mine if "trouble" in run)
            rows.append([client, f"{len(mine) - len(good)} times: {trouble}"])
    widths = [max((len(row[at]) for row in rows if len(row) > 2), default=0) for at in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def slowdown(run: Run, metric: str) -> float:
    ratio: float = run["tunnel"][metric] / run["plain"][metric]
    return 1 / ratio if metric.endswith("/s") else ratio


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    numbers = statistics.median(values), min(values), max(values)
    return "{} [{}-{}]".format(*(f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in numbers))


def simulated(json_file: Path | None) -> None:
    figures = measured()
    print(goodput_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="for a process's small requests")
    parser.add_argument("--pin", action="store_true", help="servers and clients on processors of their own (Linux)")
    parser.add_argument("--simulated", action="store_true", help="TCP over simulated networks, and nothing else")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    if options.simulated:
        simulated(options.json)
        return
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
            ]
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}; {server.description}"
    )
    for mode in options.modes:
        print(f"\n{MODES[mode][0]}\n\n{table(runs, mode)}")
    if options.json is not None:
        options.json.write_text(json.dumps({"server": server.description, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
