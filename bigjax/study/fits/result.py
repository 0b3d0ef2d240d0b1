"""What every fit returns, and what can be asked of it."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from bigjax.errors import ConfigError
from bigjax.study.fits.law import Frontier, Law

LEVEL = 0.95


class Interval(NamedTuple):
    """Percentiles of the bootstrap."""

    low: float
    high: float


class Prediction(NamedTuple):
    """A value and its interval; None without bootstrap samples."""

    value: float
    interval: Interval | None


class Minima(NamedTuple):
    """The optimum of each budget as measured, all [B]; parabola: of loss in log10 N, [B, 3]."""

    flops: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    parabola: np.ndarray | None = None


@dataclass(frozen=True)
class Fit:
    """A law, how well it holds, and how sure of it one may be.

    status: 'at a bound' names in hit_bounds which parameters the data do not determine.
    condition_number: of the scaled Jacobian of what was searched for.
    residuals: log measured less log fitted loss, of each run, or of each budget's minimum.
    residuals_params: the same of N*, where the method measures it.
    samples: the law of each bootstrap sample, fields [S]; failed: samples without a fit.
    minima: what a frontier was drawn through.
    """

    method: str
    law: Law | Frontier
    status: Literal['converged', 'at a bound', 'not converged']
    objective: float
    residuals: np.ndarray
    condition_number: float
    hit_bounds: tuple[str, ...] = ()
    samples: Law | Frontier | None = None
    failed: int = 0
    residuals_params: np.ndarray = field(default_factory=lambda: np.zeros(1))
    minima: Minima | None = None

    def interval(self, name: str, level: float = LEVEL) -> Interval | None:
        """Of a field of the law, or of its exponents `a` and `b`. Raises: ConfigError."""
        if not hasattr(self.law, name):
            raise ConfigError(f'{self.method} has no {name!r}; known: {", ".join(self.parameters)}')
        return self._percentiles(getattr(self.samples, name, None), level)

    @property
    def parameters(self) -> dict[str, float]:
        """The fields of the law, then its exponents."""
        values = self.law.values() | {'a': self.law.a, 'b': self.law.b}
        return {name: float(value) for name, value in values.items()}

    def best_params(self, flops: float, level: float = LEVEL, noise: bool = False) -> Prediction:
        """N*(C). noise: the interval of another measurement, rather than of the law."""
        return self._predict('best_params', flops, level, self.residuals_params * noise)

    def best_tokens(self, flops: float, level: float = LEVEL) -> Prediction:
        """D*(C)."""
        return self._predict('best_tokens', flops, level, np.zeros(1))

    def best_loss(self, flops: float, level: float = LEVEL, noise: bool = False) -> Prediction:
        """L*(C), nats. noise: as above."""
        return self._predict('best_loss', flops, level, self.residuals * noise)

    def loss(
        self, params: float, tokens: float, level: float = LEVEL, noise: bool = False
    ) -> Prediction:
        """L(N, D), nats. Raises: ConfigError of a method that sees the optimum only."""
        if not isinstance(self.law, Law):
            raise ConfigError(
                f'{self.method} knows the optimum of a budget only; fit by parametric or projection'
            )
        samples = None
        if isinstance(self.samples, Law):
            samples = np.asarray(self.samples.loss(params, tokens))
        return self._with_noise(
            float(self.law.loss(params, tokens)), samples, level, self.residuals * noise
        )

    def _predict(self, what: str, flops: float, level: float, noise: np.ndarray) -> Prediction:
        samples = None if self.samples is None else getattr(self.samples, what)(flops)
        return self._with_noise(float(getattr(self.law, what)(flops)), samples, level, noise)

    def _with_noise(
        self, value: float, samples: np.ndarray | None, level: float, noise: np.ndarray
    ) -> Prediction:
        if samples is None:
            return Prediction(value, None)
        drawn = np.random.default_rng(0).choice(noise, len(samples))
        return Prediction(value, self._percentiles(samples * np.exp(drawn), level))

    @staticmethod
    def _percentiles(samples: np.ndarray | None, level: float) -> Interval | None:
        if samples is None or not np.ndim(samples):
            return None
        tail = 50 * (1 - level)
        low, high = np.nanpercentile(samples, [tail, 100 - tail])
        return Interval(float(low), float(high))
