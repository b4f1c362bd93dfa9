"""API keys of the server. The process that reads them passes on their SHA-256 alone: no other one learns a key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from stages.contract import StageError
from stages.serve.config import ServeConfig

#: The environment variable: keys between commas or line breaks, each `key` or `name=key`.
VARIABLE = "REALWORD_API_KEYS"
#: What follows a name is not mere padding, with which keys in base64 end.
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})=(?P<key>[^=].*)")
_KEY = re.compile(r"[!-~]+")  # what a header can carry without quotes
_HOW = f"write {VARIABLE} as key,key or name=key,name=key, with printable ASCII characters"


@dataclass(frozen=True)
class ApiKeys:
    """The keys that a request may have; without any, every request is answered.

    Attributes:
        digests: The SHA-256 of each key, by its name.
    """

    digests: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def find(self, key: bytes) -> str | None:
        """The name of a key; None for an unknown one. The time does not depend on how much of a key is right."""
        digest = hashlib.sha256(key).digest()
        found = [name for name, known in self.digests.items() if hmac.compare_digest(digest, known)]
        return found[0] if found else None


def parse_api_keys(text: str | None) -> ApiKeys:
    """The keys of the environment variable.

    Args:
        text: Its value; None: it is not set.

    Raises:
        StageError: It has no key, or one that no request can send, or the same one twice. No message shows a key.
    """
    if text is None:
        return ApiKeys()
    entries = [entry.strip() for entry in re.split(r"[,\r\n]", text)]
    digests: dict[str, bytes] = {}
    for number, entry in enumerate(filter(None, entries), 1):
        match = _NAMED.fullmatch(entry)
        name, key = (match["name"], match["key"]) if match else (f"key-{number}", entry)
        digest = hashlib.sha256(key.encode()).digest()
        if not _KEY.fullmatch(key):
            raise StageError(f"Key {number} of {VARIABLE} has a space or another character that is not ASCII; {_HOW}.")
        if name in digests or digest in digests.values():
            raise StageError(f"Key {number} of {VARIABLE} has the name or the value of an earlier one; {_HOW}.")
        digests[name] = digest
    if not digests:
        raise StageError(f"{VARIABLE} is set, but has no key; {_HOW}, or unset it.")
    return ApiKeys(digests)


def check_exposure(settings: ServeConfig, keys: ApiKeys) -> None:
    """Check that other machines need a key.

    Raises:
        StageError: The server would listen to them without one.
    """
    if not keys and not settings.allow_anonymous and not is_loopback(settings.host):
        raise StageError(
            f"serve.host={settings.host} lets other machines paint without an API key; set {VARIABLE} in the "
            "environment, or --set serve.allow_anonymous=true if something in front of the server decides who may."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on this address or name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in found)
