"""Everything that a change must pass: `nox` runs it all, and CI calls nothing else."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "tests", "interop"]

EXTRAS = "cli,http2,httpx2,requests,aiohttp,trio"
SUITES = {  # of other projects: library, version, and what kinds of tunnel their tests run through
    ("httpx", "0.28.1"): ["own", "shared"],
    ("httpcore", "1.0.9"): ["shared"],
    ("requests", "2.34.2"): ["shared"],
}
IN_PARALLEL = ["-n", "auto", "--dist", "worksteal"]  # interop: each process has namespaces and a server of its own
PROJECT = nox.project.load_toml("pyproject.toml")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and which layer may import which."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"), f".[{EXTRAS}]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """The offline suite. Arguments go to pytest."""
    install_wheel(session)
    session.run("pytest", "-m", "not interop", *IN_PARALLEL, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The same with coverage, which takes three times as long."""
    install_wheel(session)
    session.run("coverage", "run", "-m", "pytest", "-m", "not interop", *session.posargs)
    session.run("coverage", "report")


@nox.session
def interop(session: nox.Session) -> None:
    """Against wireguard-go in network namespaces: needs root, and the packages that .ci/run installs."""
    install_wheel(session)
    if os.environ.get("CI"):  # elsewhere a missing tool skips; here it must not pass for a success
        session.env["HTTPX_WIREGUARD_REQUIRE_INTEROP"] = "1"
    session.run("pytest", "tests/interop", "-m", "interop", *IN_PARALLEL, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What the tunnel costs each client; with root, against what `interop` needs. `-- --help` lists the options."""
    session.install(*nox.project.dependency_groups(PROJECT, "test"), "-e", f".[{EXTRAS}]")
    session.run("python", "-m", "tests.benchmarks.bench", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Every fuzz target under atheris, which needs Linux. `-- --seconds N [target …]`; else 60 s each."""
    session.install(*nox.project.dependency_groups(PROJECT, "fuzz"), "-e", f".[{EXTRAS}]")
    session.run("python", "-m", "tests.fuzz", "--work", session.create_tmp(), *session.posargs)


@nox.session
def downstream(session: nox.Session) -> None:
    """The test suites of httpx, httpcore and requests through a tunnel; needs Linux. Arguments go to pytest."""
    pins = [f"{library}=={version}" for library, version in SUITES]
    session.install(".[cli,http2,requests,trio]", "-r", "tests/downstream/requirements.txt", *pins)
    scratch = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "-d", str(scratch), *pins)
    shutil.copytree("tests", scratch / "plugin/tests", dirs_exist_ok=True)
    session.env.update(PYTHONPATH=str(scratch / "plugin"), PYTHONSAFEPATH="1")
    for (library, version), tunnels in SUITES.items():
        suite = scratch / f"{library}-{version}"
        with tarfile.open(f"{suite}.tar.gz") as archive:
            archive.extractall(scratch, filter="data")
        shutil.rmtree(suite / library, ignore_errors=True)  # its tests are to find the installed one
        session.chdir(suite)
        for tunnel in tunnels:
            options = ["-p", "tests.downstream.plugin", f"--through-tunnel={library}", f"--tunnels={tunnel}"]
            options += ["-q", "-p", "no:cacheprovider", "--disable-warnings"]
            session.run("pytest", *options, "tests", *session.posargs)


def install_wheel(session: nox.Session) -> None:
    """Install what users install: a file missing from the wheel fails the tests."""
    wheels = Path(session.create_tmp(), "wheels")
    for old in wheels.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), ".")
    (wheel,) = wheels.glob("*.whl")
    session.install(*nox.project.dependency_groups(PROJECT, "test"), f"{wheel}[{EXTRAS}]")
    session.install("--force-reinstall", "--no-deps", str(wheel))  # also when the version is the same as before
    session.env["PYTHONSAFEPATH"] = "1"  # keeps the source tree off sys.path
