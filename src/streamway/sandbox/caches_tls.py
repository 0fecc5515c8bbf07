"""A certificate authority of the sandbox's own, because Google's gRPC clients speak TLS and nothing else.

gRPC trusts what GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names, instead of its own roots: the bundle made here holds the
usual public roots too, so that a client with it still reaches everything else.
"""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=365)
_CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a server on this machine needs to speak TLS.

    Args:
        key_pem: Its private key.
        certificate_pem: Its certificate, for localhost, 127.0.0.1 and ::1.
        bundle_path: Public roots and the authority that signed it, for clients.
    """

    key_pem: bytes
    certificate_pem: bytes
    bundle_path: Path


def make_identity(folder: Path) -> Identity:
    """Make an authority and a server certificate; both last as long as the server runs.

    Args:
        folder: Where the bundle for clients goes.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Streamway sandbox authority", authority_key, authority_key, None)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("localhost", key, authority_key, authority)
    bundle_path = folder / "roots.pem"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = bundle_path.with_suffix(".new")
    temporary.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + _pem(authority))
    temporary.replace(bundle_path)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(key_pem=key_pem, certificate_pem=_pem(certificate), bundle_path=bundle_path)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        names: list[x509.GeneralName] = [x509.DNSName("localhost")]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
