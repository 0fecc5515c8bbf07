"""The cluster's keys: a certificate authority of its own, a token, and the kubeconfig that carries both."""

import base64
import ipaddress
import os
import secrets
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from streamway.sandbox.cluster.objects import now

_VALID_DAYS = 3650
_CONTEXT = "streamway-sandbox"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Where the keys are.

    Args:
        authority: PEM file of the certificate authority.
        certificate: PEM file of the server's certificate.
        key: PEM file of the server's key.
        token: The administrator's token.
    """

    authority: Path
    certificate: Path
    key: Path
    token: str

    def server_context(self) -> ssl.SSLContext:
        """Make the TLS context of the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def load_credentials(folder: Path) -> Credentials:
    """Read the cluster's keys, making them first where there are none.

    Args:
        folder: Where they are kept, readable by the owner alone.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    token_path = folder / "token"
    found = Credentials(
        authority=folder / "ca.crt",
        certificate=folder / "apiserver.crt",
        key=folder / "apiserver.key",
        token=token_path.read_text() if token_path.exists() else secrets.token_urlsafe(32),
    )
    if not all(path.exists() for path in (token_path, found.authority, found.certificate, found.key)):
        _make_certificates(found)
        _write_secret(token_path, found.token.encode())
    return found


def _make_certificates(credentials: Credentials) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "streamway-sandbox-ca")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("kubernetes"),
        x509.DNSName("kubernetes.default.svc"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(name, authority_name, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    credentials.authority.write_bytes(authority.public_bytes(pem))
    credentials.certificate.write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_secret(credentials.key, private)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=_VALID_DAYS))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_secret(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def write_kubeconfig(path: Path, url: str, credentials: Credentials) -> None:
    """Write the kubeconfig by which clients reach the cluster.

    Args:
        path: Where to.
        url: The API server.
        credentials: The keys.
    """
    authority = base64.b64encode(credentials.authority.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": _CONTEXT, "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": _CONTEXT, "user": {"token": credentials.token}}],
        "contexts": [{"name": _CONTEXT, "context": {"cluster": _CONTEXT, "user": _CONTEXT}}],
        "current-context": _CONTEXT,
    }
    _write_secret(path, yaml.safe_dump(config).encode())
