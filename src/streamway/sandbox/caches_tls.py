"""A certificate authority of the sandbox's own, because Google's gRPC clients speak TLS and nothing else.

gRPC trusts what GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names, instead of its own roots: the bundle made here holds the
usual public roots too, so that a client with it still reaches everything else. A process reads that file once, so
the authority is kept: a client that outlives the server trusts the next one too.
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

_AUTHORITY_FILE = "authority.pem"
_VALID = datetime.timedelta(days=3650)
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
    """Make a server certificate, and an authority where there is none yet.

    Args:
        folder: Where the authority and the bundle for clients are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority_key, authority = _authority(folder / _AUTHORITY_FILE)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("localhost", key, authority_key, authority)
    bundle_path = folder / "roots.pem"
    temporary = bundle_path.with_suffix(".new")
    temporary.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + _pem(authority))
    temporary.replace(bundle_path)
    return Identity(key_pem=_key_pem(key), certificate_pem=_pem(certificate), bundle_path=bundle_path)


def _authority(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    if path.exists():
        pem = path.read_bytes()
        kept = serialization.load_pem_private_key(pem, password=None)
        if isinstance(kept, ec.EllipticCurvePrivateKey):
            return kept, x509.load_pem_x509_certificate(pem)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate("Streamway sandbox authority", key, key, None)
    path.touch(mode=0o600)
    path.write_bytes(_key_pem(key) + _pem(certificate))
    return key, certificate


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


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
