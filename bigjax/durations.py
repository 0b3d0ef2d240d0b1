"""Lengths of training in steps, epochs, examples, tokens or percent, converted in one place."""

import math
import re
from dataclasses import dataclass
from typing import Any

from bigjax.errors import ConfigError

UNITS = ('steps', 'epochs', 'examples', 'tokens', '%')


@dataclass(frozen=True)
class Duration:
    """A length of training: `500`, `'500 steps'`, `'10 epochs'`, `'1e6 tokens'`, `'5%'` of it."""

    amount: float
    unit: str = 'steps'

    @classmethod
    def parse(cls, value: Any) -> 'Duration':
        """Raises: ValueError saying what was expected."""
        expected = "steps (an int >= 0), or a text such as '10 epochs', '1e6 tokens', '5%'"
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(expected)
        match = re.fullmatch(r'\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*|%)\s*', str(value))
        if not match:
            raise ValueError(expected)
        unit = match[2] or 'steps'
        unit = unit if unit in UNITS else unit + 's'  # '1 epoch'
        try:
            amount = float(match[1])
        except ValueError:
            raise ValueError(expected) from None
        if unit not in UNITS or not math.isfinite(amount):
            raise ValueError(expected)
        if unit == 'steps' and amount != int(amount):
            raise ValueError('a whole number of steps')
        if unit == '%' and amount > 100:
            raise ValueError('at most 100%')
        return cls(amount, unit)

    def __str__(self) -> str:
        amount = f'{int(self.amount)}' if self.amount == int(self.amount) else f'{self.amount!r}'
        return f'{amount}%' if self.unit == '%' else f'{amount} {self.unit}'


@dataclass(frozen=True)
class Horizon:
    """What turns durations into steps: the sizes of a batch, an epoch, an example, the run."""

    batch_size: int
    examples_per_epoch: int
    tokens_per_example: int | None = None
    total_steps: int | None = None

    def steps(self, duration: Duration) -> int:
        """`duration` in steps, rounded to the nearest; but for percentages at least 1 unless 0."""
        per_step: float
        if duration.unit == 'steps':
            return int(duration.amount)
        if duration.unit == '%':
            if self.total_steps is None:
                raise ConfigError("the run's own length cannot be a percentage; give train.steps")
            return round(duration.amount / 100 * self.total_steps)
        if duration.unit == 'tokens':
            if self.tokens_per_example is None:
                raise ConfigError(f'{duration}: this data has no tokens; use steps or epochs')
            per_step = self.batch_size * self.tokens_per_example
        elif duration.unit == 'examples':
            per_step = self.batch_size
        else:
            per_step = self.batch_size / self.examples_per_epoch
        return max(1, round(duration.amount / per_step)) if duration.amount else 0
