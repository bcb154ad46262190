"""Tickets: what is sealed comes back, and nothing else opens."""

from __future__ import annotations

import hashlib
import itertools
import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_up import ENCODER, KEY, NOW_MS, SEALER, decided, heads, report

from learners.context import N_FEATURES
from learners.outcomes import NOT_ESTIMATED
from streams.errors import BadTicket
from streams.feedback import ticket as ticket_module
from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.ticket import (
    CANDIDATE,
    CONTENT_FROM,
    HEAD,
    ID_BYTES,
    IMPORTED_VERSION,
    ISSUER_BYTES,
    SEQUENCE_BYTES,
    TICKET_BYTES_MAX,
    VERSION,
    Issuer,
    Sealer,
    heads_of,
    is_measured,
    key_of,
    split_ids,
)
from streams.log.contract import Record

OTHER_KEY = bytes(range(1, 33))
TAG_BYTES = 16


def candidates(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Random bits: NaN and negative zero among them."""
    bits = np.random.default_rng(seed).bytes(n * k * CANDIDATE.itemsize)
    return np.frombuffer(bits, CANDIDATE).reshape(n, k)


def sealed(n_candidates: int = 2, tenant: str = "acme", sealer: Sealer = SEALER) -> bytes:
    """One ticket."""
    head = heads(1, np.random.default_rng(0), n_candidates=n_candidates)
    return sealer.seal(Issuer(7).take(1), head, candidates(1, n_candidates), [tenant.encode()])[0]


def keys_with_the_same_id() -> tuple[bytes, bytes]:
    """Two keys whose one-byte ids in tickets are equal, as one pair in 256 is."""
    found: dict[int, bytes] = {}
    for number in itertools.count():
        key = number.to_bytes(32, "big")
        key_id = sealed(sealer=Sealer([key]))[1]
        if key_id in found:
            return found[key_id], key
        found[key_id] = key
    raise AssertionError


# --- round trips


@pytest.mark.parametrize("n_candidates", [0, 1, 2, 64, 254, 255])
def test_a_batch_of_tickets_opens_to_the_columns_it_was_sealed_from(n_candidates):
    """
    Every bit of head and candidates, each ticket with its own id and tenant.
    """
    n = 5
    ids = Issuer(1 << 55).take(n)
    head = heads(n, np.random.default_rng(1), n_candidates=n_candidates)
    cells = candidates(n, n_candidates)
    tenants = ["", "a", "acme", "ß" * 20, "租户🦊"]

    tickets = SEALER.seal(ids, head, cells, [tenant.encode() for tenant in tenants])

    opened = [SEALER.open(ticket) for ticket in tickets]
    assert [t.decision_id for t in opened] == ids
    assert [t.tenant for t in opened] == tenants
    assert np.stack([t.head for t in opened]).tobytes() == head.tobytes()
    for row, found in enumerate(opened):
        assert found.candidates.tobytes() == cells[row].tobytes()
        assert len(found.candidates) == n_candidates
    assert max(map(len, tickets)) <= TICKET_BYTES_MAX
    bodies = [SEALER.open_body(ticket)[1] for ticket in tickets]
    assert heads_of(bodies).tobytes() == head.tobytes()


def test_the_largest_ticket_there_can_be_opens():
    """
    255 candidates and a tenant of 255 bytes stay below the limit that `open` enforces.
    """
    assert SEALER.open(sealed(255, "t" * 255)).tenant == "t" * 255


def test_no_decisions_give_no_tickets():
    """
    A batch whose requests were all refused.
    """
    assert SEALER.seal([], np.zeros(0, HEAD), np.zeros((0, 3), CANDIDATE), []) == []
    assert len(heads_of([])) == 0


@given(
    head=hnp.arrays(np.uint8, HEAD.itemsize),
    tenant=st.text(max_size=60, alphabet=st.characters(codec="utf-8")),
)
def test_any_bits_of_a_head_and_any_tenant_survive(head, tenant):
    """
    The ticket does not interpret what it carries; only the count of candidates must be true.
    """
    record = head.view(HEAD).copy()
    record["n_candidates"] = 3
    ids, cells = Issuer(3).take(1), candidates(1, 3)

    (ticket,) = SEALER.seal(ids, record, cells, [tenant.encode()])

    opened = SEALER.open(ticket)
    assert (opened.head.tobytes(), opened.tenant) == (record.tobytes(), tenant)


# --- tickets of version 1

# As version 1 had it, written out: what callers hold does not change when this file does.
HEAD_1 = np.dtype(
    [
        ("decided_at_ms", "<i8"), ("encoder", "<u8"), ("snapshot_version", "<u8"), ("model", "<u8"),
        ("pool", "<u8"), ("propensity", "<f4"), ("preference", "<f4", (3,)),
        ("expected_cost_usd", "<f4"), ("expected_latency_ms", "<f4"), ("policy", "<u8"),
        ("n_candidates", "u1"), ("tenant_bytes", "u1"), ("context", "i1", (N_FEATURES,)),
    ]
)  # fmt: skip


def of_version_1(head: np.ndarray, cells: np.ndarray, tenant: bytes, number: int = 5) -> bytes:
    """One ticket as a router before the weight of energy sealed it, with `KEY`."""
    old = np.zeros(1, HEAD_1)
    for name in HEAD_1.names:
        old[name] = head[name][:, :3] if name == "preference" else head[name]
    return of_version(1, old, cells, tenant, number)


# Versions 2 and 3 (measured) had the weight of energy, and no estimates.
HEAD_2 = np.dtype(
    [
        ("decided_at_ms", "<i8"), ("encoder", "<u8"), ("snapshot_version", "<u8"), ("model", "<u8"),
        ("pool", "<u8"), ("propensity", "<f4"), ("preference", "<f4", (4,)),
        ("expected_cost_usd", "<f4"), ("expected_latency_ms", "<f4"), ("policy", "<u8"),
        ("n_candidates", "u1"), ("tenant_bytes", "u1"), ("context", "i1", (N_FEATURES,)),
    ]
)  # fmt: skip


def of_version(
    version: int, old: np.ndarray, cells: np.ndarray, tenant: bytes, number: int = 5
) -> bytes:
    """One ticket of an earlier version, sealed with `KEY`."""
    clear = bytes([version, hashlib.blake2b(KEY, digest_size=1).digest()[0]])
    (decision_id,) = Issuer(number).take(1)
    body = old.tobytes() + cells.tobytes() + tenant
    return clear + decision_id + AESGCM(KEY).encrypt(decision_id, body, clear)


@pytest.mark.parametrize("n_candidates", [0, 2, 255])
def test_ticket_of_version_1_opens_with_no_weight_of_energy(n_candidates):
    """
    Callers hold tickets for days: everything else in them is as it was sealed.
    """
    head = heads(1, np.random.default_rng(3), n_candidates=n_candidates)
    cells = candidates(1, n_candidates)
    old = of_version_1(head, cells, "ß".encode())

    opened = Sealer([OTHER_KEY, KEY]).open(old)

    head["preference"][:, 3] = 0.0
    head["estimated_quality"] = head["estimated_cost_usd"] = np.nan
    assert opened.head.tobytes() == head.tobytes()
    assert opened.candidates.tobytes() == cells.tobytes()
    assert (opened.tenant, opened.decision_id) == ("ß", Issuer(5).take(1)[0])
    bodies = [SEALER.open_body(ticket)[1] for ticket in (old, sealed())]
    assert heads_of(bodies)["n_candidates"].tolist() == [n_candidates, 2]  # both in one batch


@pytest.mark.parametrize("version", [2, 3])
def test_ticket_from_before_estimates_opens_and_says_that_nothing_was_estimated(version):
    """
    Everything else in it is as it was sealed, and who measures the call is still known.
    """
    head = heads(1, np.random.default_rng(3), n_candidates=2)
    old = np.zeros(1, HEAD_2)
    for name in HEAD_2.names:
        old[name] = head[name]
    ticket = of_version(version, old, candidates(1, 2), b"acme")

    opened = SEALER.open(ticket)
    found = Ingest(SEALER, key_of(ENCODER), FeedbackOptions()).take(
        [Record(0, 0, NOW_MS, b"key", report(ticket, quality=0.5))]
    )

    head["estimated_quality"] = head["estimated_cost_usd"] = np.nan
    assert opened.head.tobytes() == head.tobytes()
    assert opened.candidates.tobytes() == candidates(1, 2).tobytes()
    assert is_measured(ticket) == (version == 3)
    assert found.outcomes.estimated.tolist() == [[NOT_ESTIMATED, NOT_ESTIMATED]]


def test_outcome_with_a_ticket_of_version_1_is_learned():
    """
    As it would have been before: the model and the context it was judged by are found.
    """
    head = heads(1, np.random.default_rng(3), context=np.arange(N_FEATURES, dtype=np.int8))
    old = of_version_1(head, candidates(1, 0), b"")
    ingest = Ingest(SEALER, key_of(ENCODER), FeedbackOptions())

    found = ingest.take([Record(0, 0, NOW_MS, b"key", report(old, quality=0.5))])

    assert not found.dead
    assert found.outcomes.models.tolist() == head["model"].tolist()
    assert found.outcomes.contexts.tolist() == [list(range(N_FEATURES))]


def test_ticket_of_version_1_is_as_hard_to_forge():
    """
    A flipped bit, a byte too few, and either version said to be the other.
    """
    old = of_version_1(heads(1, np.random.default_rng(3)), candidates(1, 0), b"")

    for changed in (
        *(old[:at] + bytes([old[at] ^ 1]) + old[at + 1 :] for at in range(len(old))),
        *(old[:n] for n in range(len(old))),
        bytes([VERSION]) + old[1:],
        b"\1" + sealed()[1:],
    ):
        with pytest.raises(BadTicket):
            SEALER.open(changed)


# --- what does not open


def test_a_flipped_bit_anywhere_is_noticed():
    """
    In version, key id, decision id, head, candidates, tenant or tag.
    """
    ticket = sealed()

    for position, bit in itertools.product(range(len(ticket)), (1, 128)):
        changed = bytearray(ticket)
        changed[position] ^= bit
        with pytest.raises(BadTicket):
            SEALER.open_body(bytes(changed))


def test_a_byte_too_few_or_too_many_is_noticed():
    """
    Every truncation, from either end, and an appended byte.
    """
    ticket = sealed()

    for changed in [*(ticket[:n] for n in range(len(ticket))), *(ticket[n:] for n in range(1, 40))]:
        with pytest.raises(BadTicket):
            SEALER.open_body(changed)
    with pytest.raises(BadTicket):
        SEALER.open_body(ticket + b"\0")


@given(st.binary(max_size=2000))
def test_noise_does_not_open(noise):
    """
    Whatever a stranger sends is a BadTicket, never another error.
    """
    for stranger in (noise, bytes([VERSION, SEALER._clear[1]]) + noise):
        with pytest.raises(BadTicket):
            SEALER.open(stranger)


def test_a_ticket_longer_than_any_is_refused_unread():
    """
    The limit is named, so that a producer sees what was expected.
    """
    with pytest.raises(BadTicket, match=rf"{TICKET_BYTES_MAX + 1} bytes.*{TICKET_BYTES_MAX}"):
        SEALER.open(bytes([VERSION, SEALER._clear[1]]) + bytes(TICKET_BYTES_MAX - 1))


def test_parts_of_two_tickets_do_not_make_a_third():
    """
    The id is the nonce: another ticket's body does not open under it.
    """
    one, two = (d.ticket for d in decided(2))
    border = 2 + ID_BYTES

    with pytest.raises(BadTicket):
        SEALER.open_body(one[:border] + two[border:])


def test_a_foreign_key_opens_nothing():
    """
    And the message does not say whether the key or the ticket is wrong, only what is known.
    """
    with pytest.raises(BadTicket, match=r"key that is not held here|not sealed here"):
        Sealer([OTHER_KEY]).open(sealed())


def test_another_version_is_named():
    """
    So that whoever upgrades producers and routers in turn knows what happened.
    """
    ticket = bytes([IMPORTED_VERSION + 1]) + sealed()[1:]

    with pytest.raises(BadTicket, match=f"version {IMPORTED_VERSION + 1}.*version {VERSION}"):
        SEALER.open(ticket)


# --- keys


def test_a_rotated_key_still_opens_and_the_newest_seals():
    """
    Old tickets open while the old key is held, in any place; new ones are sealed with the first.
    """
    old, rotated, over = Sealer([KEY]), Sealer([OTHER_KEY, KEY]), Sealer([OTHER_KEY])

    assert rotated.open(sealed(sealer=old)).tenant == "acme"
    assert over.open(sealed(sealer=rotated)).tenant == "acme"
    with pytest.raises(BadTicket):
        old.open(sealed(sealer=rotated))


def test_keys_whose_ids_collide_can_still_be_rotated():
    """
    Tickets name their key by one byte, so one pair of keys in 256 shares it.
    """
    first, second = keys_with_the_same_id()
    rotated = Sealer([second, first])

    assert rotated.open(sealed(sealer=Sealer([first]))).tenant == "acme"
    assert rotated.open(sealed(sealer=Sealer([second]))).tenant == "acme"
    with pytest.raises(BadTicket):
        Sealer([second]).open(sealed(sealer=Sealer([first])))


@pytest.mark.parametrize("keys", [[], [b"short"], [KEY, KEY[:-1]]])
def test_keys_that_are_no_keys_are_our_bug(keys):
    """
    `infra.pools.site` makes and checks them.
    """
    with pytest.raises(AssertionError):
        Sealer(keys)


# --- ids


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(0, (1 << 56) - 1))
def test_ids_of_an_issuer_are_never_repeated(counts, issuer):
    """
    However they are asked for, they are consecutive.
    """
    issuing = Issuer(issuer)

    ids = [taken for n in counts for taken in issuing.take(n)]

    issuers, sequences = split_ids(ids)
    assert sequences.tolist() == list(range(sum(counts)))
    assert set(issuers.tolist()) <= {issuer}


@given(
    st.lists(
        st.tuples(
            st.integers(0, (1 << 8 * ISSUER_BYTES) - 1),
            st.integers(0, (1 << 8 * SEQUENCE_BYTES) - 1),
        ),
        max_size=20,
    )
)
def test_splitting_ids_is_the_inverse_of_making_them(pairs):
    """
    Over the whole range of both numbers.
    """
    ids = [i.to_bytes(ISSUER_BYTES, "big") + s.to_bytes(SEQUENCE_BYTES, "big") for i, s in pairs]

    issuers, sequences = split_ids(ids)

    assert list(zip(issuers.tolist(), sequences.tolist(), strict=True)) == pairs
    assert issuers.dtype == sequences.dtype == np.uint64


def test_an_issuer_ends_rather_than_begins_again():
    """
    A sequence that wrapped round would repeat nonces, which reveals the key's stream. It ends
    where the numbers begin that are made of content, or one of those could be its.
    """
    issuing = Issuer(1)
    issuing.take(0)
    issuing._next = CONTENT_FROM - 1
    assert split_ids(issuing.take(1))[1].tolist() == [CONTENT_FROM - 1]

    for n in (1, 1 << 8 * SEQUENCE_BYTES):
        with pytest.raises(AssertionError, match="restart this replica"):
            issuing.take(n)


@pytest.mark.parametrize("issuer", [-1, 1 << 56])
def test_an_issuer_is_fifty_six_bits(issuer):
    """
    More would not fit the id.
    """
    with pytest.raises(AssertionError):
        Issuer(issuer)


def test_no_nonce_is_used_twice(monkeypatch):
    """
    Seen from the cipher: over batches, issuers and keys, every (key, nonce) is new.
    """
    used: list[tuple[bytes, bytes]] = []

    class Watched:
        def __init__(self, key):
            self.key, self.real = key, ticket_module_aesgcm(key)

        def encrypt(self, nonce, body, clear):
            used.append((self.key, nonce))
            return self.real.encrypt(nonce, body, clear)

    ticket_module_aesgcm = ticket_module.AESGCM
    monkeypatch.setattr(ticket_module, "AESGCM", Watched)
    for keys in ([KEY], [OTHER_KEY, KEY]):
        sealer, issuers = Sealer(keys), [Issuer(secrets.randbits(56)) for _ in range(3)]
        for n, issuing in itertools.product((1, 0, 17), issuers):
            cells, head = np.zeros((n, 0), CANDIDATE), heads(n, np.random.default_rng(n))
            sealer.seal(issuing.take(n), head, cells, [b""] * n)

    assert len(set(used)) == len(used) == 2 * 3 * 18


def test_a_name_always_has_the_same_key():
    """
    Keys are stored in statistics for weeks: a changed hash would forget all that was learned.
    """
    assert key_of("gpt-x") == 0x604DDA7F37CFEB4E
    assert len({key_of(f"model-{i}") for i in range(1000)}) == 1000
