"""Noise IKpsk2 (Noise Protocol Framework revision 34), both roles, without timers or message headers.

The protocol name, prologue and ephemeral keys are parameters, so that published vectors can be replayed.
A message that fails leaves the handshake as it was: a forged answer must not kill a pending one.
"""

from __future__ import annotations

from httpx_wireguard._wireguard import crypto
from httpx_wireguard._wireguard.constants import CONSTRUCTION, IDENTIFIER, KEY_SIZE, NO_PRESHARED_KEY, TAG_SIZE
from httpx_wireguard._wireguard.crypto import PrivateKey

_SEALED_KEY_SIZE = KEY_SIZE + TAG_SIZE


class SymmetricState:
    """Noise 5.2: chaining key, transcript hash, and the key of the next AEAD. Each key seals once, under nonce 0."""

    __slots__ = ("_chaining_key", "_key", "transcript")

    def __init__(self, protocol_name: bytes, prologue: bytes) -> None:
        name_fits = len(protocol_name) <= KEY_SIZE
        start = protocol_name.ljust(KEY_SIZE, b"\0") if name_fits else crypto.hash_of(protocol_name)
        self._chaining_key = start
        self._key = b""
        self.transcript = crypto.hash_of(start, prologue)

    def copy(self) -> SymmetricState:
        twin = object.__new__(SymmetricState)
        twin._chaining_key, twin._key, twin.transcript = self._chaining_key, self._key, self.transcript
        return twin

    def mix_hash(self, data: bytes) -> None:
        self.transcript = crypto.hash_of(self.transcript, data)

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, self._key = crypto.kdf(2, self._chaining_key, material)

    def mix_ephemeral(self, public: bytes) -> None:
        """Noise 9.2: in a psk handshake an ephemeral key goes into the chaining key too."""
        self.mix_hash(public)
        self.mix_key(public)

    def mix_preshared_key(self, key: bytes) -> None:
        self._chaining_key, material, self._key = crypto.kdf(3, self._chaining_key, key)
        self.mix_hash(material)

    def seal(self, plaintext: bytes) -> bytes:
        sealed = crypto.aead_seal(self._key, plaintext, self.transcript)
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        plaintext = crypto.aead_open(self._key, sealed, self.transcript)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """Return the transport keys: initiator to responder, then responder to initiator."""
        first, second = crypto.kdf(2, self._chaining_key, b"")
        return first, second


class InitiatorHandshake:
    """The side that sends the first message: -> e, es, s, ss; <- e, ee, se, psk."""

    __slots__ = ("_ephemeral", "_preshared_key", "_remote_static", "_state", "_static", "_static_static")

    def __init__(
        self,
        static: PrivateKey,
        remote_static: bytes,
        static_static: bytes,
        ephemeral: PrivateKey,
        preshared_key: bytes = NO_PRESHARED_KEY,
        protocol_name: bytes = CONSTRUCTION,
        prologue: bytes = IDENTIFIER,
    ) -> None:
        """`static_static` is `static.exchange(remote_static)`, computed once per peer."""
        self._static = static
        self._remote_static = remote_static
        self._static_static = static_static
        self._ephemeral = ephemeral
        self._preshared_key = preshared_key
        self._state = SymmetricState(protocol_name, prologue)
        self._state.mix_hash(remote_static)

    def write_initiation(self, payload: bytes) -> bytes:
        """Return the first message. Call once.

        Raises:
            MalformedPacket: the remote static key is of low order.
        """
        state = self._state
        state.mix_ephemeral(self._ephemeral.public)
        state.mix_key(self._ephemeral.exchange(self._remote_static))
        sealed_static = state.seal(self._static.public)
        state.mix_key(self._static_static)
        return self._ephemeral.public + sealed_static + state.seal(payload)

    def read_response(self, message: bytes) -> bytes:
        """Take the second message and return its payload; `split` is possible afterwards.

        Raises:
            MalformedPacket: not an answer to this initiation. Another message may still be.
        """
        remote_ephemeral = message[:KEY_SIZE]
        state = self._state.copy()
        state.mix_ephemeral(remote_ephemeral)
        state.mix_key(self._ephemeral.exchange(remote_ephemeral))
        state.mix_key(self._static.exchange(remote_ephemeral))
        state.mix_preshared_key(self._preshared_key)
        payload = state.open(message[KEY_SIZE:])
        self._state = state
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """Return the keys (to send with, to receive with)."""
        return self._state.split()

    @property
    def transcript(self) -> bytes:
        return self._state.transcript


class ResponderHandshake:
    """The side that answers. Who the initiator is shows only inside the first message, hence reading in two steps."""

    __slots__ = ("_remote_ephemeral", "_sealed_payload", "_state", "_static", "remote_static")

    def __init__(
        self,
        static: PrivateKey,
        message: bytes,
        protocol_name: bytes = CONSTRUCTION,
        prologue: bytes = IDENTIFIER,
    ) -> None:
        """Read the first message up to `remote_static`, which is not proven before `read_payload`.

        Raises:
            MalformedPacket: altered, or meant for another static key.
        """
        self._static = static
        self._remote_ephemeral = message[:KEY_SIZE]
        self._sealed_payload = message[KEY_SIZE + _SEALED_KEY_SIZE :]
        state = self._state = SymmetricState(protocol_name, prologue)
        state.mix_hash(static.public)
        state.mix_ephemeral(self._remote_ephemeral)
        state.mix_key(static.exchange(self._remote_ephemeral))
        self.remote_static = state.open(message[KEY_SIZE : KEY_SIZE + _SEALED_KEY_SIZE])

    def read_payload(self, static_static: bytes) -> bytes:
        """Return the payload, which proves that the sender holds the private half of `remote_static`.

        Raises:
            MalformedPacket: it does not.
        """
        self._state.mix_key(static_static)
        return self._state.open(self._sealed_payload)

    def write_response(self, ephemeral: PrivateKey, preshared_key: bytes, payload: bytes = b"") -> bytes:
        """Return the second message; `split` is possible afterwards.

        Raises:
            MalformedPacket: one of the initiator's keys is of low order.
        """
        state = self._state
        state.mix_ephemeral(ephemeral.public)
        state.mix_key(ephemeral.exchange(self._remote_ephemeral))
        state.mix_key(ephemeral.exchange(self.remote_static))
        state.mix_preshared_key(preshared_key)
        return ephemeral.public + state.seal(payload)

    def split(self) -> tuple[bytes, bytes]:
        """Return the keys (to send with, to receive with)."""
        receive, send = self._state.split()
        return send, receive

    @property
    def transcript(self) -> bytes:
        return self._state.transcript
