"""The sub-commands of `httpx-wireguard`. `get` looks like the httpx command; the keys are those of `wg`."""

from __future__ import annotations

import base64
import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
import dns.exception
import dns.message
import dns.rcode
import httpx
import pygments.lexers  # type: ignore[import-untyped]  # its stubs are a package apart
import pygments.util  # type: ignore[import-untyped]  # likewise
import rich.console
import rich.markup
import rich.progress
import rich.syntax

from httpx_wireguard import __version__, _demo
from httpx_wireguard._config import Config, Endpoint, PeerConfig, SecretKey
from httpx_wireguard._errors import OperationTimeout, WireGuardError
from httpx_wireguard._http.transport import WireGuardTransport
from httpx_wireguard._tunnel import Tunnel
from httpx_wireguard._wireguard.crypto import PrivateKey

LABEL_WIDTH = 18  # characters
DNS_PORT = 53  # RFC 1035 4.2.1
DNS_TRIES = 3  # a query or its answer may get lost; each try waits its share of the timeout
KEY_SIZE = 32  # bytes
# A server's bytes must not command the terminal: control characters but tab and newline are shown as \xNN.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160)) if code != 13}

Pairs = tuple[tuple[str, str], ...]
DnsServers = Sequence[str] | Literal["system"] | None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="httpx-wireguard", message="%(prog)s %(version)s")
def command() -> None:
    """HTTPX through WireGuard, from inside this process: no root, no TUN device, no daemon.

    \b
    Is my wg-quick file good?     httpx-wireguard check --conf wg0.conf
    Fetch a page through it:      httpx-wireguard get http://intranet.example/ --conf wg0.conf
    No server at hand:            httpx-wireguard demo
    """


_conf_option = click.option(
    "-c",
    "--conf",
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    help="The wg-quick file. Its commands (PostUp and the like) are never executed.",
)


# -- errors and warnings


def _fail(name: str, text: object) -> NoReturn:
    click.echo(f"{click.style(name, fg='red')}: {' '.join(str(text).split())}", err=True)
    sys.exit(1)


@contextlib.contextmanager
def _reported_errors() -> Iterator[None]:
    """An error that has a cause outside this program becomes one line and exit code 1."""
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL, WireGuardError, ImportError) as error:
        _fail(type(error).__name__, error)
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output left: click ends silently
            raise
        _fail(type(error).__name__, error)


class _WarningHandler(logging.Handler):
    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


@contextlib.contextmanager
def _warnings_to(tell: Callable[[str], object]) -> Iterator[None]:
    """Hand the package's own log, from WARNING up, to the user."""
    logger, handler = logging.getLogger("httpx_wireguard"), _WarningHandler(tell)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _warn(text: str) -> None:
    click.echo(f"{click.style('warning', fg='yellow')}: {text}", err=True)


# -- demo


@command.command(short_help="Both ends of a tunnel in this process; needs no server.")
@click.option("--megabytes", type=click.IntRange(min=1), default=100, show_default=True, help="Size of the download.")
def demo(megabytes: int) -> None:
    """Start a WireGuard server and a client in this process, download through the tunnel, compare every byte.

    Needs no server, no root and no network but loopback. The exit code is 0 only if all content was right.
    """
    sys.exit(_demo.run(megabytes, sys.stdout))


# -- get


def _json_value(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not valid JSON: {error}") from None


def _dns_servers(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> DnsServers:
    if value == ("system",):
        return "system"
    try:
        return [str(ipaddress.ip_address(server)) for server in value] or None
    except ValueError as error:
        raise click.BadParameter(f"{error}; give addresses of servers in the tunnel, or only 'system'") from None


def _ascii_headers(context: click.Context, parameter: click.Parameter, value: Pairs) -> Pairs:
    for name, text in value:
        if not (name + text).isascii():
            raise click.BadParameter(f"{name!r}: a header takes ASCII characters only")
    return value


def _form(context: click.Context, parameter: click.Parameter, value: Pairs) -> dict[str, list[str]] | None:
    fields: dict[str, list[str]] = {}
    for name, text in value:
        fields.setdefault(name, []).append(text)
    return fields or None


def _ssl(verify: str | None, no_verify: bool) -> ssl.SSLContext | bool:
    if verify is None:
        return not no_verify
    if no_verify:
        raise click.UsageError("--verify and --no-verify contradict each other")
    if Path(verify).is_dir():
        return ssl.create_default_context(capath=verify)
    return ssl.create_default_context(cafile=verify)


@command.command(short_help="Send a request through the tunnel, show the response.")
@click.argument("url")
@_conf_option
@click.option("-m", "--method", metavar="METHOD", help="Request method. [default: GET, or POST with a body]")
@click.option(
    "-H",
    "--header",
    "headers",
    metavar="NAME VALUE",
    type=(str, str),
    multiple=True,
    callback=_ascii_headers,
    help="A request header. Repeatable.",
)
@click.option(
    "-d",
    "--data",
    metavar="NAME VALUE",
    type=(str, str),
    multiple=True,
    callback=_form,
    help="A form field to send. Repeatable.",
)
@click.option("--content", metavar="TEXT", help="Text to send as it is.")
@click.option("-j", "--json", metavar="TEXT", callback=_json_value, help="JSON to send.")
@click.option(
    "--download",
    metavar="PATH",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Save the body. '-' is stdout; all else then goes to stderr.",
)
@click.option("--follow-redirects", is_flag=True, help="Follow redirects.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds for one step: connecting (handshake and name lookup included), a read, a write.",
)
@click.option(
    "--verify", metavar="PATH", type=click.Path(exists=True), help="CA certificates to trust: file or directory."
)
@click.option("--no-verify", is_flag=True, help="Do not check the server's certificate.")
@click.option("--http2", is_flag=True, help="Offer HTTP/2; needs the extra 'http2'.")
@click.option(
    "--dns",
    metavar="ADDR",
    multiple=True,
    callback=_dns_servers,
    help="DNS server in the tunnel, in place of the file's. Repeatable. 'system': this host's resolver, "
    "outside the tunnel.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the connection and the request too.")
def get(
    url: str,
    conf: str,
    download: str | None,
    timeout: float,
    verify: str | None,
    no_verify: bool,
    http2: bool,
    dns: DnsServers,
    verbose: bool,
    **request: Any,
) -> None:
    """Send one request through the tunnel and show the response, as the httpx command does.

    The exit code is 0 for a 2xx response, 1 for any other response and for an error.

    \b
    httpx-wireguard get http://intranet.example/ --conf wg0.conf
    httpx-wireguard get https://api.corp.example/ -c wg0.conf -v -j '{"name": "x"}'
    httpx-wireguard get http://10.0.0.1/big.iso -c wg0.conf --download big.iso
    """
    request["method"] = request["method"] or _default_method(request)
    printer = _Printer(verbose, stderr=download == "-")
    hooks, extensions = {"response": [printer.on_response]}, {"trace": printer.on_trace}
    with _reported_errors(), _warnings_to(_warn):
        transport = WireGuardTransport(conf, dns=dns, verify=_ssl(verify, no_verify), http2=http2)
        with (
            httpx.Client(transport=transport, timeout=timeout, event_hooks=hooks) as client,
            client.stream(url=url, extensions=extensions, **request) as response,
        ):
            if download is None:
                printer.print_body(response)
            else:
                printer.save_body(response, download)
    sys.exit(0 if response.is_success else 1)


def _default_method(request: Mapping[str, Any]) -> str:
    return "GET" if all(request[body] is None for body in ("data", "content", "json")) else "POST"


class _Printer:
    """Shows a request and its response: coloured on a terminal, else plain and never wrapped."""

    def __init__(self, verbose: bool, stderr: bool) -> None:
        self._verbose = verbose
        self._console = rich.console.Console(stderr=stderr)

    def _note(self, text: str) -> None:
        self._console.print(f"* {text}", markup=False, highlight=False, soft_wrap=True)

    def _code(self, text: str, lexer: str) -> None:
        if self._console.is_terminal:
            text = text.translate(_CONTROL)
            self._console.print(rich.syntax.Syntax(text, lexer, theme="ansi_dark", word_wrap=True))
        else:
            self._console.file.write(f"{text}\n")

    def on_trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore does, as its trace extension tells it."""
        if not self._verbose:
            return
        match event.split("."):
            case ["connection", "connect_tcp", "started"]:
                self._note(f"Connecting to {info['host']!r} through the tunnel")
            case ["connection", "connect_tcp", "complete"]:
                facts = info["return_value"].get_extra_info("wireguard")
                address, port = facts.remote[:2]
                self._note(f"Connected to {address!r} on port {port} in {facts.connect_seconds * 1000:.1f} ms")
            case ["connection", "start_tls", "complete"]:
                self._on_tls(info["return_value"].get_extra_info("ssl_object"))
            case [("http11" | "http2") as version, "send_request_headers", "started"]:
                request = info["request"]
                target = f"{request.method.decode('ascii')} {request.url.target.decode('ascii')}"
                self._headers(f"{target} {'HTTP/2' if version == 'http2' else 'HTTP/1.1'}", request.headers)

    def _on_tls(self, tls: ssl.SSLObject) -> None:
        cipher = tls.cipher()
        self._note(f"SSL established using {tls.version()!r} / {cipher[0] if cipher else None!r}")
        self._note(f"Selected ALPN protocol: {tls.selected_alpn_protocol()!r}")
        certificate = tls.getpeercert() or {}
        for part in ("subject", "issuer"):
            names = ", ".join("=".join(pair) for group in certificate.get(part, ()) for pair in group)
            if names:
                self._note(f"Server certificate {part}: {names}")
        if "notAfter" in certificate:
            self._note(f"Server certificate expires: {certificate['notAfter']}")

    def on_response(self, response: httpx.Response) -> None:
        """Headline and headers; of every response when redirects are followed."""
        headline = f"{response.http_version} {response.status_code} {response.reason_phrase}"
        self._headers(headline, response.headers.raw)

    def _headers(self, headline: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        lines = [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in headers]
        self._code("\n".join([headline, *lines, ""]), "http")

    def print_body(self, response: httpx.Response) -> None:
        """The body by its media type, JSON indented; what is no text is only counted."""
        content = response.read()
        lexer = _lexer_name(response.headers.get("Content-Type", ""))
        if lexer is not None:
            text = response.text
            if lexer == "JSON":
                with contextlib.suppress(ValueError):
                    text = json.dumps(response.json(), indent=4, ensure_ascii=False)
            self._code(text, lexer)
        elif content:
            self._console.print(f"<{len(content)} bytes of binary data>", markup=False)

    def save_body(self, response: httpx.Response, path: str) -> None:
        """Write the body as it comes, behind a progress bar on stderr."""
        length = response.headers.get("Content-Length")
        with (
            click.open_file(path, "wb") as file,
            rich.progress.Progress(
                "{task.description}",
                rich.progress.BarColumn(bar_width=None),
                rich.progress.DownloadColumn(),
                rich.progress.TransferSpeedColumn(),
                console=rich.console.Console(stderr=True),
            ) as progress,
        ):
            name = "Downloading" if path == "-" else f"Downloading [bold]{rich.markup.escape(Path(path).name)}"
            task = progress.add_task(name, total=None if length is None else int(length))
            for chunk in response.iter_bytes():
                file.write(chunk)
                progress.update(task, completed=response.num_bytes_downloaded)


def _lexer_name(content_type: str) -> str | None:
    """pygments' lexer for a media type; None for what is no text."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.endswith("+json"):
        return "JSON"
    try:
        name: str = pygments.lexers.get_lexer_for_mimetype(media_type).name
    except pygments.util.ClassNotFound:
        return "Text only" if media_type.startswith("text/") else None
    return name


# -- check


@command.command(short_help="Try a wg-quick file: syntax, endpoints, handshakes, DNS.")
@_conf_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that each handshake, and each DNS server, may take.",
)
@click.option("--host", metavar="NAME", help="Also resolve this name by the DNS servers in the tunnel.")
def check(conf: str, timeout: float, host: str | None) -> None:
    """Tell what is in a wg-quick file and whether it works.

    Prints interface and peers (public keys only), resolves each endpoint, tries the handshake with each peer that has
    one, and sends each DNS server in the tunnel a question. WireGuard never says why it stays silent; this says at
    least which step failed, and what was seen. A client that already runs with the same private key gets
    interrupted for some seconds.

    The exit code is 0 only if everything that could be tried worked. Warnings do not change it.
    """
    warnings: list[str] = []
    with _reported_errors(), _warnings_to(warnings.append):
        config = Config.from_file(conf)
    report = _Report()
    report.heading(conf)
    for warning in warnings:
        report.warning(warning)
    _check_interface(report, config, host)
    for number, peer in enumerate(config.peers, start=1):
        report.heading(f"peer {number}")
        _check_peer(report, config, peer, timeout, host)
    sys.exit(report.finish())


class _Report:
    """Labelled lines, and a count of the bad ones."""

    def __init__(self) -> None:
        self._problems = 0

    def heading(self, text: str) -> None:
        click.secho(text, bold=True)

    def fact(self, label: str, value: object) -> None:
        click.echo(f"  {label:<{LABEL_WIDTH}}{value}")

    def good(self, label: str, value: object) -> None:
        self.fact(label, f"{click.style('ok', fg='green')}, {value}")

    def warning(self, text: str) -> None:
        self.fact("", f"{click.style('warning', fg='yellow')}: {text}")

    def problem(self, label: str, problem: str | Exception) -> None:
        self._problems += 1
        text = problem if isinstance(problem, str) else f"{type(problem).__name__}: {problem}"
        self.fact(label, f"{click.style('PROBLEM', fg='red')}: {text}")

    def finish(self) -> int:
        """The last line; returns the exit code."""
        if self._problems == 0:
            click.secho("All is well.", fg="green")
            return 0
        click.secho("1 problem." if self._problems == 1 else f"{self._problems} problems.", fg="red")
        return 1


def _check_interface(report: _Report, config: Config, host: str | None) -> None:
    report.fact("public key", base64.b64encode(PrivateKey(config.private_key.reveal()).public).decode())
    if config.address:
        report.fact("addresses", _joined(config.address))
    else:
        report.problem("addresses", "none, so nothing can be sent; add Address =")
    report.fact("MTU", config.mtu)
    report.fact("UDP port", config.listen_port or "any free one")
    if config.dns:
        report.fact("DNS", _joined((*config.dns, *config.dns_search)))
    elif host is None:
        report.fact("DNS", "none, so host names do not resolve in the tunnel")
    else:
        report.problem("DNS", f"none, so {host} does not resolve in the tunnel; add DNS =")
    for server in config.dns:
        peer = _peer_for(config, server)
        if peer is None:
            report.problem(f"DNS {server}", "no peer's AllowedIPs cover it")
        elif peer.endpoint is None:
            report.fact(f"DNS {server}", "not tried: its peer has no endpoint")
    if not config.peers:
        report.problem("peers", "none; add a [Peer] section")


def _check_peer(report: _Report, config: Config, peer: PeerConfig, timeout: float, host: str | None) -> None:
    report.fact("public key", base64.b64encode(peer.public_key).decode())
    report.fact("preshared key", "none" if peer.preshared_key is None else "yes")
    report.fact("allowed IPs", _joined(peer.allowed_ips) or "none, so nothing is sent to this peer")
    if peer.persistent_keepalive:
        report.fact("keepalive", f"every {peer.persistent_keepalive} s")
    if peer.endpoint is None:
        report.fact("endpoint", "none: this peer must speak first, so nothing was tried")
        return
    report.fact("endpoint", peer.endpoint)
    try:
        report.fact("resolves to", ", ".join(_endpoint_addresses(peer.endpoint)))
    except OSError as error:
        report.problem("resolves to", f"nothing: {error}")
        return
    alone = Config(
        config.private_key,
        config.address,
        [peer],
        [server for server in config.dns if _peer_for(config, server) is peer],
        config.dns_search,
        config.mtu,
        config.listen_port,
    )
    _check_tunnel(report, alone, timeout, host)


def _check_tunnel(report: _Report, config: Config, timeout: float, host: str | None) -> None:
    """Handshake and DNS servers of a configuration with one peer."""
    tunnel = Tunnel(config)
    started = time.monotonic()
    try:
        tunnel.wait_ready(timeout)
        report.good("handshake", f"in {_ms(started)}")
        for server in config.dns:
            _check_dns(report, tunnel, str(server), timeout)
        if host is not None and config.dns:
            _check_host(report, tunnel, host, timeout)
    except WireGuardError as error:
        report.problem("handshake", error)
        for label in [f"DNS {server}" for server in config.dns] + ([host] if host and config.dns else []):
            report.fact(label, "not tried")
    finally:
        tunnel.close()


def _check_dns(report: _Report, tunnel: Tunnel, server: str, timeout: float) -> None:
    """Any reply at all shows that a DNS server is there; what it says of the root is its own affair."""
    started = time.monotonic()
    try:
        rcode = _ask_for_root(tunnel, server, timeout)
    except WireGuardError as error:
        report.problem(f"DNS {server}", error)
    else:
        report.good(f"DNS {server}", f"answers in {_ms(started)}" + (f" ({rcode})" if rcode == "REFUSED" else ""))


def _ask_for_root(tunnel: Tunnel, server: str, timeout: float) -> str:
    """Ask for the name servers of the root, the one question that betrays nothing; returns the reply's RCODE."""
    query = dns.message.make_query(".", "NS")
    udp = tunnel.open_udp(remote=(server, DNS_PORT))
    try:
        for _ in range(DNS_TRIES):
            udp.send(query.to_wire())
            with contextlib.suppress(OperationTimeout, dns.exception.DNSException):
                reply = dns.message.from_wire(udp.receive(timeout / DNS_TRIES)[0])
                if query.is_response(reply):
                    return dns.rcode.to_text(reply.rcode())
        raise OperationTimeout(f"no answer to {DNS_TRIES} questions in {timeout:g} s")
    finally:
        udp.close()


def _check_host(report: _Report, tunnel: Tunnel, host: str, timeout: float) -> None:
    try:
        report.good(host, ", ".join(tunnel.resolve(host, timeout)))
    except WireGuardError as error:
        report.problem(host, error)


def _peer_for(config: Config, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> PeerConfig | None:
    """The peer to which packets for `address` go: the longest prefix wins."""
    covering = [
        (network.prefixlen, peer) for peer in config.peers for network in peer.allowed_ips if address in network
    ]
    return max(covering, key=lambda pair: pair[0])[1] if covering else None


def _endpoint_addresses(endpoint: Endpoint) -> list[str]:
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _joined(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _ms(started: float) -> str:
    return f"{(time.monotonic() - started) * 1000:.1f} ms"


# -- keys, as `wg genkey`, `wg pubkey` and `wg genpsk` make them


@command.command()
def genkey() -> None:
    """Print a new private key, as `wg genkey`.

    \b
    umask 077
    httpx-wireguard genkey > private.key
    httpx-wireguard pubkey < private.key > public.key
    """
    raw = bytearray(os.urandom(KEY_SIZE))
    raw[0] &= 248  # RFC 7748 5: clamped
    raw[31] = raw[31] & 127 | 64
    _print_secret(bytes(raw))


@command.command()
def genpsk() -> None:
    """Print a new preshared key, as `wg genpsk`. Both sides of a peering take the same one."""
    _print_secret(os.urandom(KEY_SIZE))


@command.command()
def pubkey() -> None:
    """Read a private key on stdin, print its public key, as `wg pubkey`."""
    text = sys.stdin.buffer.read().decode("ascii", "replace").strip()
    with _reported_errors():
        private = SecretKey(text)
    click.echo(base64.b64encode(PrivateKey(private.reveal()).public))


def _print_secret(raw: bytes) -> None:
    with contextlib.suppress(OSError):  # stdout without a descriptor
        status = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IRWXO:
            click.echo("Warning: writing to world accessible file.", err=True)
            click.echo("Consider setting the umask to 077 and trying again.", err=True)
    click.echo(base64.b64encode(raw))
