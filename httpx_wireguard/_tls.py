"""One TLS client session without input or output of its own.

`ssl.SSLContext.wrap_bio` does the protocol; this class adds what a stream over an in-memory pair needs: reads that
return everything decrypted so far instead of one record, end of file as a value, and writes that are never refused.
Nothing here blocks, waits or locks: the stream that owns a session serialises the calls.
"""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from typing import Protocol

MAX_RECORD = 16_384  # bytes of plaintext in one record; RFC 8446 5.1


Buffer = bytes | bytearray | memoryview


class SupportsWrapBio(Protocol):
    """The one method of `ssl.SSLContext` that is used, so that contexts of other packages (truststore) work.

    A context that has `keep_session` too is given the `ssl.SSLObject` of every session that ends in good order, once.
    """

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> ssl.SSLObject: ...


class TlsSession:
    """A TLS client, sans-IO: bytes of the network in and out on one side, plaintext on the other.

    After every call, whatever `data_to_send` returns belongs on the wire, in that order.

    Attributes:
        ssl_object: the session's `ssl.SSLObject`, for ALPN, cipher and certificate.
    """

    def __init__(self, ssl_context: SupportsWrapBio, server_hostname: str | None = None) -> None:
        """
        Raises:
            ValueError: the context is to check the host's name, and there is none. `wrap_bio` would not check then.
        """
        if getattr(ssl_context, "check_hostname", False) and not server_hostname:
            raise ValueError("check_hostname requires server_hostname")
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = ssl_context.wrap_bio(
            self._incoming, self._outgoing, server_side=False, server_hostname=server_hostname
        )
        self._keep_session: Callable[[ssl.SSLObject], None] | None = getattr(ssl_context, "keep_session", None)
        self._unread = bytearray()  # decrypted by `poll`, not yet asked for
        self._unwritten: deque[memoryview] = deque()  # plaintext that waits for a renegotiation to end
        self._at_eof = False
        self._error: ssl.SSLError | None = None

    def handshake(self) -> bool:
        """Take the handshake as far as the bytes received allow.

        Returns:
            True when it is complete; False when it needs more from the network.

        Raises:
            ssl.SSLError: it failed; an alert for the other side may be left in `data_to_send`. `ssl.SSLEOFError`
                when the network ended first.
        """
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive_data(self, data: Buffer) -> None:
        """Take bytes from the network."""
        self._incoming.write(data)

    def receive_eof(self) -> None:
        """Note that the network will deliver no more."""
        self._incoming.write_eof()

    def data_to_send(self) -> bytes:
        """Take the bytes due to the network; empty when there are none."""
        return self._outgoing.read()

    @property
    def has_data_to_send(self) -> bool:
        """Whether `data_to_send` would return something."""
        return self._outgoing.pending > 0

    @property
    def is_drained(self) -> bool:
        """Whether `read` would return None, and `poll` False: nothing came since. Cheaper than to ask them."""
        incoming = self._incoming
        return not (
            incoming.pending
            or incoming.eof
            or self._unread
            or self._unwritten
            or self._at_eof
            or self._error is not None
            or self.ssl_object.pending()
        )

    def read(self, max_bytes: int) -> bytes | None:
        """Take decrypted data: all there is, of as many records as it spans, up to `max_bytes`.

        Returns:
            The data; None when the next byte has to come from the network first; b"" at the end of the stream, by
            close_notify or without it: HTTP delimits its messages itself, and many servers omit the alert.

        Raises:
            ssl.SSLError: the session failed; data decrypted before the failure is returned first.
        """
        chunks: list[bytes] = []
        if self._unread:
            chunks.append(bytes(self._unread[:max_bytes]))
            del self._unread[:max_bytes]
            max_bytes -= len(chunks[0])
        while max_bytes > 0 and (chunk := self._read_record(max_bytes)):
            chunks.append(chunk)
            max_bytes -= len(chunk)
            if self.is_drained:
                break
        self._encrypt_unwritten()
        if chunks:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._error is not None:
            raise self._error
        return b"" if self._at_eof else None

    def poll(self) -> bool:
        """Whether `read` has something to tell: data, the end, or a failure.

        Records that carry no data (session tickets, key updates) are consumed and do not count.
        """
        if not self._unread and (chunk := self._read_record(MAX_RECORD)):
            self._unread += chunk
        return bool(self._unread) or self._at_eof or self._error is not None

    def write(self, data: Buffer) -> None:
        """Encrypt all of `data`.

        During a renegotiation (TLS 1.2) it is kept, and encrypted by the call that sees the renegotiation end.

        Raises:
            ssl.SSLError: the session failed or was shut down.
        """
        plaintext = memoryview(data).cast("B")
        if len(plaintext):
            self._unwritten.append(plaintext)
            self._encrypt_unwritten()

    def shutdown(self) -> None:
        """Queue close_notify; the other side's is not waited for, and a session that cannot send it just ends."""
        keep_session, self._keep_session = self._keep_session, None
        if keep_session is not None:
            keep_session(self.ssl_object)
        with contextlib.suppress(ssl.SSLError, ValueError):
            self.ssl_object.unwrap()

    def _read_record(self, max_bytes: int) -> bytes:
        """Decrypt up to one record's data; empty at the end, after a failure, and when a record is incomplete."""
        if self._at_eof or self._error is not None:
            return b""
        try:
            data = self.ssl_object.read(min(max_bytes, MAX_RECORD))
            self._at_eof = not data  # close_notify
            return data
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self._at_eof = True
        except ssl.SSLError as error:
            self._error = error
        return b""

    def _encrypt_unwritten(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            while self._unwritten:
                data = self._unwritten[0]
                written = self.ssl_object.write(data)
                if written == len(data):
                    self._unwritten.popleft()
                else:
                    self._unwritten[0] = data[written:]
