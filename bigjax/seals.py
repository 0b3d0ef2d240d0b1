"""JSON that vouches for itself: beside what it says stands the SHA-256 of that."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(body: Mapping[str, Any]) -> bytes:
    """The content of a file that says `body`, and its seal."""
    return json.dumps({**body, 'sha256': _sha256(body)}, indent=1).encode()


def unseal(content: bytes) -> dict[str, Any]:
    """What was sealed. Raises: ValueError where it is not as it was."""
    body = json.loads(content)
    if not isinstance(body, dict) or body.pop('sha256', None) != _sha256(body):
        raise ValueError('its own checksum differs')
    return body


def _sha256(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
