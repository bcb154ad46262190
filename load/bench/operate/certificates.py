"""Certificates of this bench alone: an authority, and what it and strangers issue for localhost."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = dt.timedelta(days=1)
SUBJECTS = x509.SubjectAlternativeName(
    [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A key and its certificate, as PEM."""

    key: bytes
    certificate: bytes


class Authority:
    """Signs certificates; trusted by whoever is given its own."""

    def __init__(self, name: str, now: dt.datetime) -> None:
        self._now, self._key = now, ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.certificate = _pem(self._signed(self._name, self._key, authority=True))

    @classmethod
    def like(cls, other: Self, now: dt.datetime) -> Self:
        """A stranger of the same name, with a key of its own."""
        made = cls("", now)
        made._name = other._name
        return made

    def issue(self, name: str, valid_days: int = 1) -> Pair:
        """A key, and its certificate for localhost; of yesterday where it is valid for none."""
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._signed(_named(name), key, until=self._now + (valid_days - 0.5) * DAY)
        encoded = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Pair(encoded, _pem(signed))

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        until: dt.datetime | None = None,
        authority: bool = False,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - DAY)
            .not_valid_after(until or self._now + DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(SUBJECTS, critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name or "nobody")])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
