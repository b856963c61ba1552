"""Each way in which Celery can write a message."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

from celery import Celery

from tests.ecosystem.adapter import Adapter

__all__ = ["Compressed", "Msgpack", "Pickle", "Signed", "Yaml"]


class _By(Adapter):
    serializer: ClassVar[str]

    def settings(self) -> dict[str, Any]:
        return {
            "task_serializer": self.serializer,
            "result_serializer": self.serializer,
            "accept_content": [self.serializer],
        }


class Msgpack(_By):
    """Messages and results are msgpack."""

    serializer = "msgpack"


class Pickle(_By):
    """Messages and results are pickles."""

    serializer = "pickle"

    def environment(self) -> dict[str, str]:
        return {"C_FORCE_ROOT": "1"}  # as root a worker refuses pickles otherwise


class Yaml(_By):
    """Messages and results are YAML."""

    serializer = "yaml"
    canvas = chords = False


class Compressed(Adapter):
    """Messages and results are compressed."""

    def settings(self) -> dict[str, Any]:
        return {"task_compression": "gzip", "result_compression": "bzip2"}


class Signed(Adapter):
    """Messages are signed, and others are refused."""

    def start(self) -> None:
        """Make a key, and a certificate that signs itself."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop")])
        now = datetime.datetime.now(datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self._path("key").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        self._path("pem").write_bytes(certificate.public_bytes(pem))

    def _path(self, end: str) -> Any:
        return self.directory / f"shop.{end}"

    def settings(self) -> dict[str, Any]:
        return {
            "security_key": str(self._path("key")),
            "security_certificate": str(self._path("pem")),
            "security_cert_store": str(self.directory / "*.pem"),
            "task_serializer": "auth",
            "event_serializer": "auth",
            "accept_content": ["auth"],
            "result_accept_content": ["json"],
        }

    def install(self, app: Celery, note: Any) -> None:
        """As Celery's documentation has it."""
        app.setup_security()
