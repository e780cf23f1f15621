"""Numbers of the protocol, then limits of this implementation, each with its source or reason."""

from __future__ import annotations

# --- Noise (WireGuard paper 5.4) ---
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"
NO_PRESHARED_KEY = bytes(32)  # paper 5.4: zeros, and the psk step is still done

KEY_SIZE = 32  # X25519 keys, ChaCha20 keys, BLAKE2s hashes
TAG_SIZE = 16  # Poly1305
MAC_SIZE = 16  # keyed BLAKE2s-128

# --- Timers (paper 6.1), seconds ---
REKEY_AFTER_TIME = 120.0  # the initiator rekeys after sending with a session of this age
REJECT_AFTER_TIME = 180.0  # neither send nor receive with an older session
REKEY_ATTEMPT_TIME = 90.0  # no answer for this long: give up
REKEY_TIMEOUT = 5.0  # at most one initiation per peer in this time
KEEPALIVE_TIMEOUT = 10.0  # answer received data with at least an empty packet within this time
REKEY_TIMEOUT_JITTER = 1 / 3  # paper 6.1: "an additional amount of time, up to 333 ms"

NEW_HANDSHAKE_TIMEOUT = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT  # paper 6.5: sent data, heard nothing
RECEIVE_REKEY_AFTER_TIME = REJECT_AFTER_TIME - NEW_HANDSHAKE_TIMEOUT  # paper 6.2: 165 s, initiator only
ZERO_KEYS_AFTER_TIME = 3 * REJECT_AFTER_TIME  # paper 6.3: no new session for this long: erase all keys

# --- Counters (paper 6.1), messages ---
REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1

# --- Cookies (paper 5.4.7, 6.6), seconds ---
COOKIE_SECRET_LIFETIME = 120.0
COOKIE_LATENCY = 5.0  # a cookie is not used in its last seconds: it would expire on the way
COOKIE_LIFETIME = COOKIE_SECRET_LIFETIME - COOKIE_LATENCY

# --- Limits of this implementation ---
MAX_STAGED_PACKETS = 128  # per peer, while there is no session; the oldest is dropped first, as in the kernel
INITIATION_INTERVAL = 1 / 50  # seconds between accepted initiations of one peer, as in the kernel
TIMESTAMP_GRAIN = 2**24  # ns; stamps are rounded down to it so that they leak no fine clock, as in the kernel
PADDING = 16  # bytes; paper 5.4.6
REPLAY_WINDOW = 8192  # counters; RFC 6479 recommends a large window, the kernel has 8128
UNDER_LOAD_HANDSHAKES = 100  # handshake messages in one second; each costs about 0.3 ms of X25519
TOKENS_PER_SECOND = 20  # handshake messages per source address while under load, as in the kernel
TOKEN_BURST = 5  # messages, as in the kernel
MAX_TOKEN_BUCKETS = 4096  # source addresses remembered while under load
MAX_ROUTE_CACHE = 4096  # inner addresses whose route is remembered
MAX_RUN_DATAGRAMS = 64  # UDP_MAX_SEGMENTS of Linux before 6.9
MAX_RUN_BYTES = 65_000  # below the 65,507 bytes of one UDP send
UNANSWERED_ATTEMPTS = 3  # initiations, about 10 s, after which the endpoint's name is looked up again; ours
