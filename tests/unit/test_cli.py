"""The command, against a server in this process: by click's runner, and as a program of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from httpx_wireguard import Config, PeerConfig, __version__, _demo
from httpx_wireguard._cli import command
from httpx_wireguard._streams import SyncStream
from httpx_wireguard.testing import HOST, IPV4, SiteHandler, WireGuardPeer, body
from tests.tls_server import TlsServer, certificate
from tests.wg_quick import wg_quick

OTHER_KEY = base64.b64encode(bytes(31) + b"\x01").decode()
CLIENTS = 100  # more than the tests use up
WITHOUT_CLICK = "import sys; sys.modules['click'] = None; from httpx_wireguard.__main__ import main; main()"
WriteConf = Callable[[str], str]
needs_posix = pytest.mark.skipif(os.name != "posix", reason="file modes and signals as POSIX has them")
needs_wg = pytest.mark.skipif(shutil.which("wg") is None, reason="the wg command is not installed")


class CommandHandler(SiteHandler):
    """The site, and paths with what the command has to show."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/headers")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/problem":
            self._send(b'{"title":"caf\\u00e9"}', "application/problem+json")
        elif self.path == "/truncated":
            self._begin(1000, "text/plain")
            self.wfile.write(b"too short")
            self.close_connection = True
        elif self.path == "/escape":
            self._send(b"\x1b]0;title\x07harmless", "text/plain")
        else:
            super().do_GET()


def serve_tls(stream: SyncStream) -> None:
    tls = TlsServer(stream)
    while b"\r\n\r\n" not in tls.read(65_536):
        pass
    tls.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nsecure")


@pytest.fixture(scope="module")
def peer() -> Iterator[WireGuardPeer]:
    with WireGuardPeer(
        handler=CommandHandler,
        servers={443: serve_tls},
        names={"server.test": [IPV4]},
        preshared_key=bytes(range(32)),
        clients=CLIENTS,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def new_config(peer: WireGuardPeer) -> Callable[[], Config]:
    """A client of its own for each run: a server takes one initiation per 20 ms of each (paper 5.4.4)."""
    configs = map(peer.client_config, range(CLIENTS))
    return lambda: next(configs)


@pytest.fixture
def config(new_config: Callable[[], Config]) -> Config:
    return new_config()


@pytest.fixture
def write_conf(tmp_path: Path) -> WriteConf:
    def write(text: str) -> str:
        path = tmp_path / "wg0.conf"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return str(path)

    return write


@pytest.fixture
def conf(config: Config, write_conf: WriteConf) -> str:
    return write_conf(wg_quick(config))


def run(*arguments: str, stdin: str = "") -> Result:
    result = CliRunner().invoke(command, arguments, input=stdin, prog_name="httpx-wireguard")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def program(*arguments: str, stdin: bytes = b"", code: str | None = None) -> subprocess.CompletedProcess[bytes]:
    start = ["-m", "httpx_wireguard"] if code is None else ["-c", code]
    return subprocess.run([sys.executable, *start, *arguments], input=stdin, capture_output=True, timeout=60)


def secrets(config: Config) -> list[str]:
    keys = [config.private_key, *(peer.preshared_key for peer in config.peers if peer.preshared_key)]
    return [base64.b64encode(key.reveal()).decode() for key in keys]


# -- the program


def test_version() -> None:
    assert run("--version").output == f"httpx-wireguard {__version__}\n"


def test_every_sub_command_explains_itself() -> None:
    listed = run("--help").output
    for name in command.commands:
        assert f"  {name} " in listed
        assert f"Usage: httpx-wireguard {name} " in run(name, "--help").output


def test_without_click_demo_runs() -> None:
    ended = program("demo", "--megabytes", "1", code=WITHOUT_CLICK)
    assert ended.returncode == 0, ended
    assert b"Done: the page and all 1,000,000 bytes were right.\n" in ended.stdout.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("arguments", [(), ("genkey",), ("get", "http://peer.test/")])
def test_without_click_the_rest_says_what_to_install(arguments: Sequence[str]) -> None:
    ended = program(*arguments, code=WITHOUT_CLICK)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"pip install 'httpx-wireguard[cli]'" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_without_click_help_tells_of_demo_and_of_the_extra() -> None:
    ended = program("--help", code=WITHOUT_CLICK)
    assert ended.returncode == 0
    assert b"demo" in ended.stdout
    assert b"pip install 'httpx-wireguard[cli]'" in ended.stdout


def test_without_click_demo_refuses_a_size_that_is_none() -> None:
    ended = program("demo", "--megabytes", "0", code=WITHOUT_CLICK)
    assert ended.returncode == 2
    assert b"'0' is not a whole number above 0" in ended.stderr


@needs_posix
@pytest.mark.parametrize("start", [["-m", "httpx_wireguard"], ["-c", WITHOUT_CLICK]])
def test_demo_ends_quietly_when_nobody_reads_its_output(start: Sequence[str]) -> None:
    child = subprocess.Popen(
        [sys.executable, *start, "demo", "--megabytes", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        errors = child.stderr.read()
        assert child.wait(60) == 1
    assert errors == b""


# -- demo


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_demo_as_a_program() -> None:
    ended = program("demo", "--megabytes", "1")
    assert ended.returncode == 0, ended
    text = ended.stdout.decode()
    for label in ("server", "client", "handshake", "first response", "throughput", "sent", "received", "dropped"):
        assert f"\n  {label} " in text
    assert f"GET http://{HOST}/ -> HTTP/1.1 200 OK" in text
    progress = [line.split()[0] for line in text.splitlines() if " of 1 MB" in line]
    assert (len(progress), progress[-1]) == (10, "100")


def test_demo_draws_its_bar_over_itself_on_a_terminal() -> None:
    terminal = Terminal()
    assert _demo.run(1, terminal) == 0
    bar = next(line for line in terminal.getvalue().split("\n") if "\r" in line)
    assert "[" + "#" * _demo.BAR_WIDTH + "] 100 %" in bar.split("\r")[-1]


@pytest.mark.parametrize(
    ("at", "replacement", "complaint"),
    [
        (600_000, b"\x00" * 8, "the download is wrong after 589,824 bytes"),
        (999_999, b"", "RemoteProtocolError: peer closed connection"),
    ],
)
def test_demo_fails_when_the_content_is_wrong(at: int, replacement: bytes, complaint: str) -> None:
    class WrongHandler(SiteHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                return super().do_GET()
            self._begin(1_000_000, "application/octet-stream")
            self.wfile.write(body(1_000_000)[:at] + replacement + body(1_000_000)[at + 8 :])
            self.close_connection = True

    output = io.StringIO()
    assert _demo.run(1, output, WireGuardPeer(handler=WrongHandler)) == 1
    assert "\nFailed: " in output.getvalue()
    assert complaint in output.getvalue()
    assert "Done" not in output.getvalue()


def test_demo_fails_when_the_page_came_from_elsewhere() -> None:
    class StrangeHandler(SiteHandler):
        def do_GET(self) -> None:
            self._send(b"somewhere else", "text/plain")

    output = io.StringIO()
    assert _demo.run(1, output, WireGuardPeer(handler=StrangeHandler)) == 1
    assert "Failed: WrongContent: the page of http://peer.test/" in output.getvalue()


# -- get


def test_get_prints_headline_headers_and_body(conf: str) -> None:
    result = run("get", "http://peer.test/", "--conf", conf)
    headers, _, page = result.stdout.partition("\n\n")
    assert result.exit_code == 0
    assert headers.startswith("HTTP/1.1 200 OK\nServer: httpx-wireguard")
    assert page.startswith("<!doctype html>")
    assert result.stderr == ""


def test_get_verbose_shows_connection_and_request(conf: str, config: Config) -> None:
    result = run("get", f"http://{IPV4}/headers", "-c", conf, "-v", "-H", "X-Test", "one")
    assert result.stdout.startswith(
        f"* Connecting to '{IPV4}' through the tunnel\n* Connected to '{IPV4}' on port 80 in "
    )
    assert f"\nGET /headers HTTP/1.1\nHost: {IPV4}\n" in result.stdout
    assert not any(secret in result.output for secret in secrets(config))


def test_get_indents_json(conf: str) -> None:
    result = run("get", "http://peer.test/headers", "-c", conf, "-H", "X-Test", "one")
    shown = result.stdout.partition("\n\n")[2]
    assert json.loads(shown)["X-Test"] == "one"
    assert '\n    "X-Test": "one"' in shown


def test_get_indents_what_is_json_by_its_suffix(conf: str) -> None:
    assert '{\n    "title": "café"\n}' in run("get", "http://peer.test/problem", "-c", conf).stdout


def test_get_counts_what_is_no_text(conf: str) -> None:
    assert run("get", "http://peer.test/bytes/100", "-c", conf).stdout.endswith("\n\n<100 bytes of binary data>\n")


def test_get_colours_on_a_terminal_and_shows_control_characters_as_text(
    conf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = run("get", "http://peer.test/escape", "-c", conf).stdout
    assert "\x1b[" in shown  # colours
    assert "\\x1b]0;title\\x07harmless" in shown
    assert "\x1b]" not in shown


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (("-j", '{"a": 1}'), b'{"a":1}'),
        (("--content", "plain"), b"plain"),
        (("-d", "a", "1", "-d", "b", "2", "-d", "a", "3"), b"a=1&a=3&b=2"),
        (("--content", "put", "-m", "PUT"), b"put"),
    ],
)
def test_get_sends_a_body(conf: str, arguments: Sequence[str], sent: bytes) -> None:
    result = run("get", "http://peer.test/", "-c", conf, *arguments)
    answer = json.loads(result.stdout.partition("\n\n")[2])
    assert answer == {"length": len(sent), "sha256": hashlib.sha256(sent).hexdigest()}


def test_get_exits_1_for_an_error_status(conf: str) -> None:
    result = run("get", "http://peer.test/nowhere", "-c", conf)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (1, "HTTP/1.1 404 Not Found")


def test_get_exits_1_for_a_redirect_that_it_was_not_told_to_follow(conf: str) -> None:
    """As the httpx command does: only 2xx is success."""
    result = run("get", "http://peer.test/redirect", "-c", conf)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (1, "HTTP/1.1 302 Found")


def test_get_follows_redirects_when_told_to(conf: str) -> None:
    result = run("get", "http://peer.test/redirect", "-c", conf, "--follow-redirects")
    headlines = [line for line in result.stdout.splitlines() if line.startswith("HTTP/")]
    assert (result.exit_code, headlines) == (0, ["HTTP/1.1 302 Found", "HTTP/1.1 200 OK"])


def test_get_downloads_to_a_file(conf: str, tmp_path: Path) -> None:
    target = tmp_path / "content"
    result = run("get", "http://peer.test/bytes/1000000", "-c", conf, "--download", str(target))
    assert result.exit_code == 0
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(body(1_000_000)).digest()
    assert "1.0/1.0 MB" in result.stderr
    assert result.stdout.startswith("HTTP/1.1 200 OK\n")


def test_get_downloads_to_stdout_and_nothing_else_goes_there(conf: str) -> None:
    ended = program("get", "http://peer.test/bytes/300000", "-c", conf, "--download", "-")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == body(300_000)
    assert b"HTTP/1.1 200 OK" in ended.stderr


def test_get_fails_when_a_download_ends_early(conf: str, tmp_path: Path) -> None:
    result = run("get", "http://peer.test/truncated", "-c", conf, "--download", str(tmp_path / "content"))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("RemoteProtocolError: ")


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://nowhere.test/", "ConnectError: cannot resolve 'nowhere.test'"),
        (f"http://{IPV4}:81/", f"ConnectError: connection to {IPV4} port 81 refused"),
        ("peer.test", "UnsupportedProtocol: "),
        ("http://[::/", "InvalidURL: "),
    ],
)
def test_get_says_in_one_line_what_went_wrong(conf: str, url: str, error: str) -> None:
    result = run("get", url, "-c", conf)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(error)
    assert result.stderr.count("\n") == 1


def test_get_through_a_silent_endpoint_times_out_with_the_reason(config: Config, write_conf: WriteConf) -> None:
    with silent_endpoint() as endpoint:
        conf = write_conf(wg_quick(with_peer(config, endpoint=endpoint)))
        result = run("get", f"http://{IPV4}/", "-c", conf, "--timeout", "0.2")
    assert result.exit_code == 1
    assert result.stderr.startswith("ConnectTimeout: ")
    assert f"no handshake answer from {endpoint}" in result.stderr


def test_get_checks_certificates(new_config: Callable[[], Config], write_conf: WriteConf, tmp_path: Path) -> None:
    conf = write_conf(wg_quick(new_config()))
    authority = tmp_path / "ca.pem"
    authority.write_bytes(certificate()[0])
    refused = run("get", "https://server.test/", "-c", conf)
    assert refused.exit_code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    conf = write_conf(wg_quick(new_config()))
    trusted = run("get", "https://server.test/", "-c", conf, "-v", "--verify", str(authority))
    assert trusted.exit_code == 0, trusted.output
    assert "\n* SSL established using 'TLSv1." in trusted.stdout
    assert "\n* Server certificate subject: commonName=server.test\n" in trusted.stdout
    conf = write_conf(wg_quick(new_config()))
    assert run("get", "https://server.test/", "-c", conf, "--no-verify").stdout.endswith("\n\nsecure\n")


def test_get_asks_other_dns_servers(new_config: Callable[[], Config], write_conf: WriteConf) -> None:
    without_dns = [wg_quick(new_config()).replace(f"DNS = {IPV4}\n", "") for _ in range(2)]
    conf = write_conf(without_dns[0])
    without = run("get", "http://peer.test/", "-c", conf)
    assert (without.exit_code, "DNS" in without.stderr) == (1, True)
    conf = write_conf(without_dns[1])
    assert run("get", "http://peer.test/", "-c", conf, "--dns", IPV4).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [("--dns", "resolver.test"), ("--dns", "system", "--dns", IPV4), ("-j", "{"), ("-H", "X", "é"), ("--timeout", "0")],
)
def test_get_refuses_impossible_options(conf: str, arguments: Sequence[str]) -> None:
    result = run("get", "http://peer.test/", "-c", conf, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_get_reports_a_mistake_in_the_configuration(write_conf: WriteConf) -> None:
    result = run("get", "http://peer.test/", "-c", write_conf("[Interface]\nPrivateKey = short\n"))
    assert result.exit_code == 1
    assert result.stderr.startswith("ConfigError: ")
    assert "wg0.conf:2: PrivateKey: a key is 44 characters of base64" in result.stderr


@needs_posix
def test_get_is_interrupted_without_a_traceback(write_conf: WriteConf) -> None:
    arrived, released = threading.Event(), threading.Event()

    class HangingHandler(SiteHandler):
        def do_GET(self) -> None:
            arrived.set()
            released.wait(60)

    with WireGuardPeer(handler=HangingHandler) as peer:
        arguments = ["get", "http://peer.test/", "-c", write_conf(wg_quick(peer.client_config())), "--timeout", "60"]
        child = subprocess.Popen(
            [sys.executable, "-m", "httpx_wireguard", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        with child:
            assert arrived.wait(60)
            child.send_signal(signal.SIGINT)
            _, errors = child.communicate(timeout=60)
        released.set()
    assert (child.returncode, errors.decode().strip()) == (1, "Aborted!")


# -- check


def with_peer(config: Config, **changes: Any) -> Config:
    """The configuration with its peer changed."""
    (peer,) = config.peers
    values = {
        "public_key": peer.public_key,
        "allowed_ips": peer.allowed_ips,
        "endpoint": peer.endpoint,
        "preshared_key": peer.preshared_key,
    }
    return Config(config.private_key, config.address, [PeerConfig(**{**values, **changes})], config.dns)


@contextlib.contextmanager
def silent_endpoint() -> Iterator[str]:
    """A UDP port that takes every datagram and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def test_check_of_a_good_file(conf: str, config: Config, peer: WireGuardPeer) -> None:
    result = run("check", "--conf", conf, "--host", HOST)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == conf
    assert lines[-1] == "All is well."
    assert f"  public key        {base64.b64encode(peer.public_key).decode()}" in lines
    assert f"  addresses         {', '.join(map(str, config.address))}" in lines
    assert "  preshared key     yes" in lines
    assert f"  endpoint          {peer.endpoint}" in lines
    assert "  resolves to       127.0.0.1" in lines
    assert any(line.startswith("  handshake         ok, in ") for line in lines)
    assert any(line.startswith(f"  DNS {IPV4}     ok, answers in ") for line in lines)
    assert any(line.startswith(f"  {HOST}         ok, ") and IPV4 in line for line in lines)
    assert not any(secret in result.output for secret in secrets(config))


def test_check_names_the_line_of_a_mistake(config: Config, write_conf: WriteConf) -> None:
    text = wg_quick(config).replace("AllowedIPs", "AllowedIPss")
    result = run("check", "--conf", write_conf(text))
    assert result.exit_code == 1
    number = text.split("AllowedIPss")[0].count("\n") + 1
    assert f"wg0.conf:{number}: AllowedIPss: unknown key; did you mean AllowedIPs?" in result.stderr
    assert not any(secret in result.output for secret in secrets(config))


@needs_posix
def test_check_warns_of_an_open_file_and_of_ignored_keys_and_still_succeeds(conf: str) -> None:
    path = Path(conf)
    path.write_text(path.read_text().replace("[Interface]\n", "[Interface]\nPostUp = rm -rf /\n"))
    path.chmod(0o644)
    result = run("check", "--conf", conf)
    assert result.exit_code == 0
    assert "chmod 600 it\n" in result.stdout
    assert "ignored, and never executed: PostUp (line 2)\n" in result.stdout


def problem_of_check(config: Config, write_conf: WriteConf, *arguments: str, timeout: float = 0.3) -> str:
    """The one problem that `check` finds, as its line."""
    result = run("check", "--conf", write_conf(wg_quick(config)), "--timeout", str(timeout), *arguments)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "1 problem.")
    return next(line.strip() for line in result.stdout.splitlines() if "PROBLEM" in line)


def test_check_tells_a_silent_endpoint(config: Config, write_conf: WriteConf) -> None:
    with silent_endpoint() as endpoint:
        problem = problem_of_check(with_peer(config, endpoint=endpoint), write_conf)
    assert problem.startswith(f"handshake         PROBLEM: HandshakeTimeout: no handshake answer from {endpoint}")


@pytest.mark.skipif(sys.platform != "linux", reason="where the system tells of ICMP errors")
def test_check_tells_an_endpoint_where_nothing_listens(config: Config, write_conf: WriteConf) -> None:
    with silent_endpoint() as endpoint:
        pass
    problem = problem_of_check(with_peer(config, endpoint=endpoint), write_conf)
    assert problem.startswith(f"handshake         PROBLEM: EndpointUnreachable: datagrams to {endpoint} come back")


def test_check_tells_a_wrong_preshared_key(config: Config, write_conf: WriteConf) -> None:
    problem = problem_of_check(with_peer(config, preshared_key=OTHER_KEY), write_conf)
    assert problem.startswith("handshake         PROBLEM: HandshakeFailed: ")


def test_check_tells_a_wrong_public_key(config: Config, write_conf: WriteConf) -> None:
    """The server cannot read the initiation, and drops it without a word (paper 5.4.2)."""
    wrong = WireGuardPeer().public_key
    problem = problem_of_check(with_peer(config, public_key=wrong), write_conf)
    assert "HandshakeTimeout: " in problem
    assert "compare Endpoint = and both PublicKey =" in problem


def test_check_tells_an_endpoint_that_does_not_resolve(config: Config, write_conf: WriteConf) -> None:
    config = with_peer(config, endpoint="vpn.invalid:51820")
    assert problem_of_check(config, write_conf).startswith("resolves to       PROBLEM: nothing: ")


def test_check_tells_a_name_that_does_not_resolve_in_the_tunnel(config: Config, write_conf: WriteConf) -> None:
    problem = problem_of_check(config, write_conf, "--host", "nowhere.test", timeout=10)
    assert problem.startswith("nowhere.test      PROBLEM: NameResolutionError: cannot resolve 'nowhere.test'")


def test_check_tells_a_dns_server_that_no_peer_leads_to(config: Config, write_conf: WriteConf) -> None:
    problem = problem_of_check(with_peer(config, allowed_ips="192.0.2.0/24"), write_conf, timeout=10)
    assert problem == f"DNS {IPV4}     PROBLEM: no peer's AllowedIPs cover it"


def test_check_tells_a_dns_server_that_does_not_answer(config: Config, write_conf: WriteConf) -> None:
    silent = Config(config.private_key, config.address, config.peers, dns="192.0.2.1")
    problem = problem_of_check(silent, write_conf, timeout=1)
    assert problem.startswith("DNS 192.0.2.1     PROBLEM: OperationTimeout: no answer to 3 questions")


def test_check_does_not_try_a_peer_without_endpoint(config: Config, write_conf: WriteConf) -> None:
    passive = PeerConfig(WireGuardPeer().public_key, "192.0.2.0/24")
    both = Config(config.private_key, config.address, [*config.peers, passive], config.dns)
    result = run("check", "--conf", write_conf(wg_quick(both)))
    assert result.exit_code == 0, result.output
    assert "peer 2\n" in result.stdout
    assert "none: this peer must speak first, so nothing was tried\n" in result.stdout


def test_check_needs_an_address_and_a_peer(write_conf: WriteConf) -> None:
    result = run("check", "--conf", write_conf(f"[Interface]\nPrivateKey = {OTHER_KEY}\n"))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "2 problems.")


# -- keys


@pytest.mark.parametrize(
    ("private", "public"),
    [
        (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
    ],
)
def test_pubkey_by_the_vectors_of_rfc_7748(private: str, public: str) -> None:
    """RFC 7748 6.1."""
    result = run("pubkey", stdin=base64.b64encode(bytes.fromhex(private)).decode())
    assert base64.b64decode(result.stdout) == bytes.fromhex(public)
    assert result.stdout.endswith("=\n")


def test_genkey_is_clamped_and_new_each_time() -> None:
    """RFC 7748 5."""
    keys = {base64.b64decode(run("genkey").stdout) for _ in range(20)}
    assert len(keys) == 20
    assert all(len(key) == 32 and key[0] & 7 == 0 and key[31] & 192 == 64 for key in keys)


def test_genpsk_is_32_bytes_and_new_each_time() -> None:
    keys = {base64.b64decode(run("genpsk").stdout) for _ in range(20)}
    assert len(keys) == 20
    assert all(len(key) == 32 for key in keys)


@pytest.mark.parametrize("stdin", ["", "short\n", "!" * 44, OTHER_KEY + "x", OTHER_KEY + "\n" + OTHER_KEY])
def test_pubkey_refuses_what_is_no_key_and_does_not_repeat_it(stdin: str) -> None:
    result = run("pubkey", stdin=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("ConfigError: ")
    assert OTHER_KEY not in result.stderr


@needs_wg
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n \n"])
def test_keys_are_those_of_wg(ending: bytes) -> None:
    private = program("genkey").stdout
    wg = subprocess.run(["wg", "pubkey"], input=private.strip() + ending, capture_output=True, check=True, timeout=60)
    ours = program("pubkey", stdin=private.strip() + ending)
    assert (ours.stdout, ours.returncode) == (wg.stdout, 0)


@needs_posix
@pytest.mark.parametrize("name", ["genkey", "genpsk"])
@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_secret_keys_warn_when_all_the_world_can_read_them(name: str, mode: int, warned: bool, tmp_path: Path) -> None:
    """As `wg` does, in its words."""
    target = tmp_path / "key"
    target.touch()
    target.chmod(mode)
    with target.open("wb") as file:
        ended = subprocess.run(
            [sys.executable, "-m", "httpx_wireguard", name], stdout=file, stderr=subprocess.PIPE, timeout=60
        )
    assert ended.returncode == 0
    assert ended.stderr.startswith(b"Warning: writing to world accessible file.\n") == warned
    assert len(base64.b64decode(target.read_bytes())) == 32
