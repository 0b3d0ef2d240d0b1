"""The laws: how loss falls with parameters N, tokens D and training FLOPs C, and the optimum.

Fields may be floats or arrays [S], an entry a bootstrap sample; results broadcast.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np

from bigjax.errors import ConfigError

Values = float | np.ndarray
SIX = 6.0  # FLOPs for each parameter and token, where C is counted as 6 N D


class Optima(Protocol):
    """What every law can say: the best split of a budget, and the loss that it reaches."""

    @property
    def a(self) -> Values:
        """The exponent of N*(C)."""

    @property
    def b(self) -> Values:
        """The exponent of D*(C)."""

    def best_params(self, flops: Values) -> Values:
        """N*(C)."""

    def best_tokens(self, flops: Values) -> Values:
        """D*(C)."""

    def best_loss(self, flops: Values) -> Values:
        """L*(C)."""


class _Columns:
    """Laws as tables: a field a column."""

    def values(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def at(self, index: Any) -> Self:
        """The law of some samples: each field that is an array, indexed."""
        picked = {
            name: value[index] if np.ndim(value) else value for name, value in self.values().items()
        }
        return type(self)(**picked)


@dataclass(frozen=True)
class Law(_Columns):
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2).

    cost: C / (N D), 6 by convention; of a table, its geometric mean.
    """

    E: Values
    A: Values
    B: Values
    alpha: Values
    beta: Values
    cost: Values = SIX

    @property
    def a(self) -> Values:
        """beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> Values:
        """1 - a."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> Values:
        """(alpha A / (beta B))^(1 / (alpha + beta)) (Hoffmann et al. 2022, equation 4)."""
        with np.errstate(all='ignore'):
            return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def loss(self, params: Values, tokens: Values) -> Values:
        """L(N, D), nats."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    def best_params(self, flops: Values) -> Values:
        """N* = G (C / cost)^a."""
        return self.G * (flops / self.cost) ** self.a

    def best_tokens(self, flops: Values) -> Values:
        """D* = (C / cost)^b / G."""
        return (flops / self.cost) ** self.b / self.G

    def best_loss(self, flops: Values) -> Values:
        """L(N*, D*)."""
        return self.loss(self.best_params(flops), self.best_tokens(flops))


@dataclass(frozen=True)
class Frontier(_Columns):
    """N* = n C^a, D* = d C^b, L* = E + K C^-gamma: the optimum as approaches 1 and 2 see it.

    No two are derived from each other, so a + b need not be 1.
    """

    n: Values
    a: Values
    d: Values
    b: Values
    E: Values
    K: Values
    gamma: Values

    def best_params(self, flops: Values) -> Values:
        """N*(C)."""
        return self.n * flops**self.a

    def best_tokens(self, flops: Values) -> Values:
        """D*(C)."""
        return self.d * flops**self.b

    def best_loss(self, flops: Values) -> Values:
        """L*(C), nats."""
        return self.E + self.K * flops**-self.gamma


def check_positive(what: str, values: Values) -> None:
    """Raises: ConfigError unless all are finite and above 0."""
    bad = ~(np.isfinite(values) & (np.asarray(values) > 0))
    if np.any(bad):
        raise ConfigError(
            f'{what}: expected finite numbers above 0, got {np.asarray(values)[bad].flat[0]:g}; '
            'leave such rows out'
        )
