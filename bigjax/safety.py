"""What must not get out: secrets out of the environment, names out of their folder."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.errors import ConfigError

NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,127}')
REDACTED = '[redacted]'
SHORTEST = 8
"""Characters: a shorter value of a variable may stand anywhere by chance, and is not looked for."""

SECRET = r'(?:api_?key|access_?key|secret|token|password|passwd|credentials?)'
VARIABLE = re.compile(rf'(?:^|_)(?:key|{SECRET})(?:_|$)', re.IGNORECASE)
IN_TEXT = re.compile(
    r'(?<=://)[^/\s:@]*:[^/\s@]+(?=@)'  # user:password@ in a URL
    rf'|(?<=[?&;])({SECRET}|sig|signature)=[^&\s\'"]+'  # of its query
    r'|\b(?:sk-|hf_|ghp_|github_pat_|glpat-|xox[abp]-|AKIA|AIza)[A-Za-z0-9_-]{12,}',
    re.IGNORECASE,
)


def child(root: Path, name: str, where: str) -> Path:
    """The path of `name` below `root`; `where` says who gave the name.

    Raises: ConfigError for a name that could lead elsewhere.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f'{where}: expected the name of a file: a letter or digit, then at most 127 letters, '
            f'digits, ".", "_" or "-", got {name!r}; rename it'
        )
    return root / name


def redacted(text: str) -> str:
    """Without the values of variables such as $WANDB_API_KEY, and what else looks like a secret."""
    for value in _values():
        text = text.replace(value, REDACTED)
    return IN_TEXT.sub(REDACTED, text)


def refuse_secrets(values: Mapping[str, Any]) -> None:
    """For fields by dotted name. Raises: ConfigError naming one that holds a secret, not it."""
    for key, value in values.items():
        if redacted(f'{value}') != f'{value}':
            raise ConfigError(
                f'{key} holds a secret, and a config is kept: expected one in the environment '
                'alone; leave it out, and let the program that needs it read its variable'
            )


def _values() -> list[str]:
    found = {value for name, value in os.environ.items() if VARIABLE.search(name)}
    return sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True)
