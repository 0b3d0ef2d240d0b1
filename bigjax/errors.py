"""Errors that a user can mend, and the exit codes by which a supervisor tells them apart."""

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_DIVERGED = 70
EXIT_PREEMPTED = 75
EXIT_USER_ERROR = 78


class BigjaxError(Exception):
    """An expected failure: the command prints its message and leaves with `exit_code`."""

    exit_code = EXIT_USER_ERROR


class ConfigError(BigjaxError):
    """A config that cannot be run."""


class DataError(BigjaxError):
    """Data that is missing, malformed or unfit for the config."""


class CheckpointError(BigjaxError):
    """A checkpoint that is missing, damaged or belongs to another model."""


class EnvironmentProblem(BigjaxError):
    """A machine that cannot run this: no accelerator, no disk, no package."""


class Diverged(BigjaxError):
    """Training produced values that are not finite."""

    exit_code = EXIT_DIVERGED


class Preempted(BigjaxError):
    """The machine asked us to stop; the state is saved."""

    exit_code = EXIT_PREEMPTED


class PeerLost(BigjaxError):
    """Another process of the run is gone, or late; another try may go well."""

    exit_code = EXIT_FAILED


def one_line(error: BaseException) -> str:
    """The message, whatever line breaks are in it."""
    return ' '.join(str(error).split())


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `name`: the closest of `known`, or all of them when there are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return 'did you mean ' + ' or '.join(repr(match) for match in close) + '?'
    return 'known: ' + ', '.join(known[:40]) + (', ...' if len(known) > 40 else '')
