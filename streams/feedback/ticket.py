"""The ticket: what learning needs later, sealed into bytes that the caller carries.

    version │ key id │ decision id (12) │ AES-GCM( head │ candidates │ tenant │ said ) + tag (16)

The decision id doubles as the cipher's nonce: it is unique per decision, which is exactly what a
nonce must be. It is made of an *issuer* (56 random bits drawn at start by each replica) and a
*sequence* number (40 bits), so that "seen before" can be kept as one bit per decision.

What was imported from a file has an id made of its content, so that it counts once however often
the file is read. As its time differs each time, the same id comes with several contents: such a
ticket is sealed with AES-GCM-SIV, for which that is harmless (RFC 8452).

Heads are fixed-size records, so a batch of opened tickets becomes columns without a loop. A ticket
of an earlier version opens as one of this version, with what it lacks set to "not known".

Only a holder of the key can make a ticket that opens, so what is in an opened
ticket can be believed, and what comes beside it must be validated.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from numpy.typing import NDArray

from learners.arms.pairs import N_PAIR
from learners.context import N_FEATURES
from streams.errors import BadTicket
from streams.feedback.said import NO_END, Said, said_bytes, split

VERSION = 5
# As version 5, for a call that its issuer makes and measures: of such a decision others report the
# quality only, see `Sealer.proof`.
MEASURED_VERSION = 6
IMPORTED_VERSION = 7  # as version 5, of an answer read from a file: see `content_ids`
SAID = 8  # added to a version where what the request said of itself follows: `said`
PROOF_BYTES = 16
KEY_BYTES = 32
ID_BYTES = 12
ISSUER_BYTES, SEQUENCE_BYTES = 7, 5
CONTENT_FROM = 1 << (8 * SEQUENCE_BYTES - 1)  # no issuer counts so far: ids made of content
TICKET_BYTES_MAX = 16_384  # 255 candidates and the longest tenant stay below this
CLEAR_BYTES = 2 + ID_BYTES
TAG_BYTES = 16

HEAD = np.dtype(
    [
        ("decided_at_ms", "<i8"),  # Unix time on the router
        ("encoder", "<u8"),  # key of the encoder that made the context
        ("snapshot_version", "<u8"),
        ("model", "<u8"),  # key of the chosen model
        ("pool", "<u8"),  # key of the chosen pool
        ("propensity", "<f4"),  # of the chosen model, in (0, 1]
        ("preference", "<f4", (4,)),  # weights of quality, USD, seconds and kilojoules
        ("expected_cost_usd", "<f4"),  # by the catalogue, what cost is learned relative to
        ("expected_latency_ms", "<f4"),  # likewise
        ("policy", "<u8"),  # key of the policy's description
        ("n_candidates", "u1"),
        ("tenant_bytes", "u1"),
        ("context", "i1", (N_FEATURES,)),
        # Of the chosen model before calibration, which is learned from how true these were; NaN
        # where nothing was estimated of it.
        ("estimated_quality", "<f4"),
        ("estimated_cost_usd", "<f4"),
    ]
)
# Callers hold tickets for days, so those of earlier versions are opened. Version 1 lacks the weight
# of energy and, like 2, 3 (measured) and 4 (imported), what was estimated.
assert HEAD.fields is not None
ENERGY_AT, NO_ENERGY = HEAD.fields["preference"][1] + 12, bytes(4)
ESTIMATED_AT = HEAD.fields["estimated_quality"][1]
NOT_ESTIMATED = np.full(2, np.nan, "<f4").tobytes()
HEAD_BYTES = (
    {1: ESTIMATED_AT - len(NO_ENERGY)}
    | dict.fromkeys((2, 3, 4), ESTIMATED_AT)
    | dict.fromkeys((VERSION, MEASURED_VERSION, IMPORTED_VERSION), HEAD.itemsize)
    | dict.fromkeys((VERSION | SAID, MEASURED_VERSION | SAID), HEAD.itemsize)
)
CANDIDATE = np.dtype(
    [
        ("model", "<u8"),
        ("pool", "<u8"),
        ("propensity", "<f4"),
        ("utility", "<f4"),
        ("quality", "<f4"),
        ("cost_usd", "<f4"),
        ("latency_ms", "<f4"),
        ("verdict", "u1"),  # why it was or was not eligible: `serve.routing.eligible.Verdict`
    ]
)

assert HEAD.fields is not None
CANDIDATES_AT = HEAD.fields["n_candidates"][1]


@lru_cache(maxsize=1024)
def key_of(name: str) -> int:
    """The 64-bit key that stands for a name in tickets and statistics (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class Issuer:
    """Gives out decision ids, unique as long as the 56 random bits are."""

    def __init__(self, issuer: int) -> None:
        """`issuer` is a random number below 2^56, drawn once per process."""
        assert 0 <= issuer < 1 << (8 * ISSUER_BYTES)
        self._prefix, self._next = issuer.to_bytes(ISSUER_BYTES, "big"), 0

    def take(self, n: int) -> list[bytes]:
        """The next n decision ids."""
        first, self._next = self._next, self._next + n
        assert self._next <= CONTENT_FROM, "half a trillion decisions: restart this replica"
        prefix = self._prefix
        return [prefix + i.to_bytes(SEQUENCE_BYTES, "big") for i in range(first, first + n)]


@dataclass(frozen=True, slots=True)
class Ticket:
    """An opened ticket. `head` is one `HEAD` record, `candidates` (k,) of `CANDIDATE`."""

    decision_id: bytes
    head: np.void
    candidates: NDArray[np.void]
    tenant: str
    said: Said


class Sealer:
    """Seals with the first of its keys, opens with any: so keys can be rotated."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` are 32 bytes each, newest first."""
        assert keys and all(len(key) == KEY_BYTES for key in keys)
        # One key in 256 shares another one's id.
        self._ciphers: dict[int, list[AESGCM | AESGCMSIV]] = {}
        self._of_imported: dict[int, list[AESGCM | AESGCMSIV]] = {}
        for key in keys:
            self._ciphers.setdefault(_key_id(key), []).append(AESGCM(key))
            self._of_imported.setdefault(_key_id(key), []).append(AESGCMSIV(_derived(key)))
        self._keys, self._clear = list(keys), bytes([VERSION, _key_id(keys[0])])
        self._cipher = self._ciphers[_key_id(keys[0])][0]

    def seal(
        self,
        ids: Sequence[bytes],
        heads: NDArray[np.void] | NDArray[np.uint8],
        candidates: NDArray[np.void] | NDArray[np.uint8],
        tenants: Sequence[bytes],
        measured: Sequence[bool] | None = None,
        said: Sequence[bytes] | None = None,
    ) -> list[bytes]:
        """Seal n tickets from `HEAD` records (n,) and `CANDIDATE` records (n, k), or their bytes.

        Those `measured` (n,) are of calls that are made and measured here. `said` (n,) are what
        `said.end_of` makes of what requests said.
        """
        encrypt, clears = self._cipher.encrypt, [self._clear] * len(ids)
        if measured is not None or said is not None:
            versions = [
                (MEASURED_VERSION if mine else VERSION) | (SAID if end else 0)
                for mine, end in zip(
                    measured or [False] * len(ids), said or [b""] * len(ids), strict=True
                )
            ]
            clears = [bytes([one, *self._clear[1:]]) for one in versions]
        if said is not None:
            tenants = [tenant + end for tenant, end in zip(tenants, said, strict=True)]
        head, cell = heads.tobytes(), candidates.tobytes()
        h, c = HEAD.itemsize, len(cell) // max(1, len(ids))
        return [
            clear
            + ids[i]
            + encrypt(ids[i], head[i * h : i * h + h] + cell[i * c : i * c + c] + tenants[i], clear)
            for i, clear in enumerate(clears)
        ]

    def seal_imported(
        self, ids: Sequence[bytes], heads: NDArray[np.void], tenants: Sequence[bytes]
    ) -> list[bytes]:
        """Tickets of answers read from a file, `ids` being `content_ids`; no candidates."""
        clear = bytes([IMPORTED_VERSION, *self._clear[1:]])
        cipher = self._of_imported[self._clear[1]][0]
        return [
            clear + one + cipher.encrypt(one, head.tobytes() + tenant, clear)
            for one, head, tenant in zip(ids, heads, tenants, strict=True)
        ]

    def open_body(self, ticket: bytes) -> tuple[bytes, bytes]:
        """Decision id and decrypted body: the fast half of `open`. Raises BadTicket.

        Bodies are of this version, whichever the ticket is of.
        """
        decision_id = check_shape(ticket)
        version, key_id = ticket[0], ticket[1]
        if key_id not in self._ciphers:
            raise BadTicket("a ticket sealed with a key that is not held here: another router's?")
        imported = version == 4 or version == IMPORTED_VERSION  # noqa: PLR1714 - it is quicker
        for cipher in (self._of_imported if imported else self._ciphers)[key_id]:
            try:
                body = cipher.decrypt(decision_id, ticket[CLEAR_BYTES:], ticket[:2])
            except InvalidTag:
                continue
            return decision_id, _completed(body, version)
        raise BadTicket("a ticket that was not sealed here, or was changed since")

    def proof(self, decision_id: bytes) -> bytes:
        """What shows that a report comes from a holder of the key: a code of the decision's id."""
        return _code(self._keys[0], decision_id)

    def proves(self, decision_id: bytes, proof: bytes) -> bool:
        """Whether that is what `proof` gave, under any of the keys."""
        return any(hmac.compare_digest(_code(key, decision_id), proof) for key in self._keys)

    def open(self, ticket: bytes) -> Ticket:
        """Open one ticket. Raises BadTicket."""
        decision_id, body = self.open_body(ticket)
        head = np.frombuffer(body, HEAD, 1)[0]
        candidates = np.frombuffer(body, CANDIDATE, int(head["n_candidates"]), HEAD.itemsize)
        tenant, said = split(rest_of(body))
        return Ticket(decision_id, head, candidates, tenant.decode(), said)


def content_ids(contents: Sequence[bytes]) -> list[bytes]:
    """Ids that equal contents share, apart from all that an `Issuer` gives out."""
    found = []
    for content in contents:
        digest = hashlib.blake2b(content, digest_size=ID_BYTES, person=b"fairlead.import").digest()
        found.append(digest[:ISSUER_BYTES] + bytes([digest[ISSUER_BYTES] | 0x80]) + digest[8:])
    return found


def check_shape(ticket: bytes) -> bytes:
    """The decision id of what looks like a ticket; no key is needed. Raises BadTicket."""
    version = ticket[0] if ticket else VERSION
    least = CLEAR_BYTES + TAG_BYTES + HEAD_BYTES.get(version, 0)
    if not least <= len(ticket) <= TICKET_BYTES_MAX:
        raise BadTicket(
            f"a ticket of {len(ticket)} bytes; tickets have {least} to {TICKET_BYTES_MAX}"
        )
    if version not in HEAD_BYTES:
        raise BadTicket(f"a ticket of version {version}; this is version {VERSION}")
    return ticket[2:CLEAR_BYTES]


def ticket_bytes(text: str) -> bytes:
    """A ticket from base64url. Raises binascii.Error.

    What base64.b64decode does with `altchars` and `validate`, in a sixth of the time.
    """
    text = text.replace("-", "+").replace("_", "/")
    text += "=" * (-len(text) % 4)  # JavaScript and Go leave the padding out
    try:
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError:
        return binascii.a2b_base64(text, strict_mode=True)  # which says why, or knows better


def is_measured(ticket: bytes) -> bool:
    """Whether the call is made and measured by who issued the ticket."""
    return bool(ticket) and ticket[0] in (3, MEASURED_VERSION, MEASURED_VERSION | SAID)


def _code(key: bytes, decision_id: bytes) -> bytes:
    """BLAKE2b, keyed; with a purpose of its own, since the key also seals."""
    return hashlib.blake2b(
        decision_id, key=key, digest_size=PROOF_BYTES, person=b"fairlead.report"
    ).digest()


def _derived(key: bytes) -> bytes:
    """A key of its own for the other cipher."""
    return hashlib.blake2b(key, digest_size=KEY_BYTES, person=b"fairlead.import").digest()


def _completed(body: bytes, version: int) -> bytes:
    """A body of any version as one of this version."""
    if version == 1:
        body = body[:ENERGY_AT] + NO_ENERGY + body[ENERGY_AT:]
    if version < VERSION:
        body = body[:ESTIMATED_AT] + NOT_ESTIMATED + body[ESTIMATED_AT:]
    return body if version & SAID else body + NO_END


def heads_of(bodies: Sequence[bytes]) -> NDArray[np.void]:
    """The heads (n,) of opened bodies, as columns."""
    return np.frombuffer(b"".join([body[: HEAD.itemsize] for body in bodies]), HEAD)


def tenant_of(body: bytes) -> bytes:
    """The tenant of an opened body."""
    return split(rest_of(body))[0]


def said_of(body: bytes) -> Said:
    """What the request of an opened body said of itself, and the rules it met."""
    return split(rest_of(body))[1]


def pairs_of(bodies: Sequence[bytes]) -> NDArray[np.int8]:
    """Of tickets of arms, how request and arm were seen (n, 127); zeros of models.

    (n, 0) where all are of models, as nearly always.
    """
    # What a request of a model said is mostly nothing; to look at its length takes a tenth.
    long = [i for i, body in enumerate(bodies) if said_bytes(body) > N_PAIR]
    said = {i: pair for i in long if (pair := said_of(bodies[i]).pair)}
    found = np.zeros((len(bodies), N_PAIR if said else 0), np.int8)
    for i, pair in said.items():
        found[i] = np.frombuffer(pair, np.int8)
    return found


def rest_of(body: bytes) -> bytes:
    """What follows the candidates."""
    return body[HEAD.itemsize + body[CANDIDATES_AT] * CANDIDATE.itemsize :]


def split_ids(ids: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Issuers and sequences (n,) of decision ids."""
    raw = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES)
    wide = np.zeros((len(ids), 16), np.uint8)
    wide[:, 8 - ISSUER_BYTES : 8] = raw[:, :ISSUER_BYTES]
    wide[:, 16 - SEQUENCE_BYTES :] = raw[:, ISSUER_BYTES:]
    numbers = wide.reshape(-1).view(">u8").astype(np.uint64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def join_ids(issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]) -> list[bytes]:
    """Decision ids of issuers and sequences (n,): the inverse of `split_ids`."""
    return [
        issuer.to_bytes(ISSUER_BYTES, "big") + sequence.to_bytes(SEQUENCE_BYTES, "big")
        for issuer, sequence in zip(issuers.tolist(), sequences.tolist(), strict=True)
    ]


def _key_id(key: bytes) -> int:
    return hashlib.blake2b(key, digest_size=1).digest()[0]
