"""Which evaluation was the best, and when to stop: pure functions of the run's history."""

from collections.abc import Sequence

from bigjax.config import EarlyStopping
from bigjax.errors import ConfigError, nearest

LOWER_IS_BETTER = (
    'loss', 'mse', 'mae', 'rmse', 'perplexity', 'bits_per_byte', 'brier', 'calibration_error',
)  # fmt: skip

History = Sequence[tuple[int, float]]
"""(step, value) of one metric, in the order of the steps."""


def sign(metric: str) -> int:
    """1 where more of the metric (`val/accuracy`) is better, -1 where less is."""
    return -1 if metric.rsplit('/', 1)[-1].endswith(LOWER_IS_BETTER) else 1


def best_step(metric: str, history: History) -> int | None:
    """The step of the best value; of equals the earliest. None where there is no value."""
    if not history:
        return None
    return max(history, key=lambda point: (sign(metric) * point[1], -point[0]))[0]


def should_stop(config: EarlyStopping, history: History) -> bool:
    """Whether the last `patience` values failed to improve by `min_delta` on the best before."""
    direction = sign(config.metric)
    best, waited = -float('inf'), 0
    for _, value in history:
        if direction * value > best + config.min_delta or best == -float('inf'):
            best, waited = direction * value, 0
        else:
            waited += 1
    return waited >= config.patience


def check_metric(name: str, known: Sequence[str], where: str) -> None:
    """Raises: ConfigError where `name` will never be measured."""
    if name not in known:
        raise ConfigError(
            f'bad value for {where}: no metric {name!r} is measured; {nearest(name, known)}'
        )
