"""The command `httpx-wireguard`, also `python -m httpx_wireguard`."""

from __future__ import annotations

import argparse
import io
import os
import sys

EXTRA = ("click", "rich", "pygments")  # what the extra "cli" installs
HINT = "pip install 'httpx-wireguard[cli]'"


def main() -> None:
    """Run the command; without the packages of the extra `cli`, only its `demo`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a page may hold what the terminal's encoding does not
    try:
        from httpx_wireguard._cli import command
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
    else:
        command(prog_name="httpx-wireguard")
    sys.exit(_run_plain(sys.argv[1:], missing))


def _run_plain(arguments: list[str], missing: str) -> int:
    """What the plain installation can do; returns the exit code."""
    from httpx_wireguard import __version__, _demo

    if not arguments or arguments[0] not in ("demo", "--version", "--help", "-h"):
        what = f"'{arguments[0]}' needs" if arguments else "the sub-commands but `demo` need"
        print(f"httpx-wireguard: {what} the package {missing}, which is not installed: {HINT}", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(
        "httpx-wireguard",
        description="HTTPX through WireGuard. This is the plain installation: it has the sub-command `demo`.",
        epilog=f"All the others come with {HINT}",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    demo = parser.add_subparsers(required=True).add_parser("demo", help=_demo.SUMMARY, description=_demo.SUMMARY)
    demo.add_argument(
        "--megabytes", type=_positive, metavar="N", default=100, help="size of the download [default: 100]"
    )
    options = parser.parse_args(arguments)
    try:
        return _demo.run(options.megabytes, sys.stdout)
    except KeyboardInterrupt:
        print("\nAborted!", file=sys.stderr)
    except BrokenPipeError:  # as in `httpx-wireguard demo | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered
    return 1


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    main()
