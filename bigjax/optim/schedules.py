"""The learning rate over the run: one table of shapes, and a linear warm-up in front of any.

A shape maps the steps since the warm-up to a fraction of the peak; its keyword-only arguments are
its options in a config. The warm-up rises from 0 to the shape's own first value. A shape that comes
down to an `end` reaches it when the run is over, after the last update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from bigjax.config import ScheduleConfig
from bigjax.durations import Duration, Horizon
from bigjax.errors import ConfigError
from bigjax.optim import options
from bigjax.schema import Fraction, NonNegative, Range

WHERE = 'config.optimizer.schedule'

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
"""From the number of updates done so far to a scalar."""


RISE = Duration(30, '%')
DECAY = Duration(20, '%')


@dataclass(frozen=True)
class Span:
    """The part of a run that a shape covers: what follows the first `warmup` steps."""

    horizon: Horizon
    warmup: int

    @property
    def steps(self) -> int:
        """Raises: ConfigError if the length of the run is not known."""
        return self.horizon.steps(Duration(100, '%')) - self.warmup

    def part(self, duration: Duration, option: str) -> int:
        """`duration` in steps, 1 or more. Raises: ConfigError if it is 0 or the span is shorter."""
        part = max(1, self.horizon.steps(duration))
        if not duration.amount or part > self.steps:
            raise _wrong(
                option, f'1 to {self.steps} steps (the run less its warm-up)', duration, part
            )
        return part


def constant(span: Span) -> Schedule:
    """The peak throughout."""
    return optax.constant_schedule(1.0)


def linear(span: Span, *, end: Fraction = 0.0) -> Schedule:
    """A straight line from the peak to `end`."""
    return _ramp(1.0, end, span.steps, 'linear')


def cosine(span: Span, *, end: Fraction = 0.0) -> Schedule:
    """Half a cosine from the peak to `end` (Loshchilov & Hutter 2017, equation 5)."""
    return _ramp(1.0, end, span.steps, 'cosine')


def exponential(
    span: Span,
    *,
    every: Duration,
    decay: Annotated[float, Range(above=0, below=1)],
    staircase: bool = False,
    end: Fraction = 0.0,
) -> Schedule:
    """Times `decay` for every `every`, smoothly or in stairs, but never below `end`."""
    return optax.exponential_decay(
        1.0, span.part(every, 'every'), decay, staircase=staircase, end_value=end
    )


def piecewise(
    span: Span, *, boundaries: tuple[Duration, ...], values: tuple[NonNegative, ...]
) -> Schedule:
    """The peak, then from each boundary on, counted from the run's start, the value it names."""
    if not 0 < len(boundaries) == len(values):
        raise ConfigError(
            f'{WHERE}: expected one value for each boundary, and at least one; '
            f'got {len(boundaries)} boundaries and {len(values)} values'
        )
    steps = [span.horizon.steps(boundary) for boundary in boundaries]
    marks = [span.warmup, *steps, span.warmup + span.steps]
    if marks != sorted(set(marks)):
        raise ConfigError(
            f'bad value for {WHERE}.boundaries: expected increasing steps between the end of the '
            f'warm-up, {marks[0]}, and of the run, {marks[-1]}; got {steps}'
        )
    pieces = [optax.constant_schedule(value) for value in (1.0, *values)]
    return optax.join_schedules(pieces, [step - span.warmup for step in steps])


def inverse_square_root(span: Span, *, timescale: Duration | None = None) -> Schedule:
    """1 / sqrt(1 + t / timescale), the timescale being the warm-up unless given.

    The default makes it sqrt(warmup / step) of the peak, Vaswani et al. 2017, equation 3.
    """
    scale = span.warmup if timescale is None else span.horizon.steps(timescale)
    if scale < 1:
        raise ConfigError(f'{WHERE}: inverse_square_root needs a warmup or a timescale; set one')
    return lambda t: jax.lax.rsqrt(1.0 + jnp.asarray(t, jnp.float32) / scale)


def one_cycle(
    span: Span,
    *,
    rise: Duration = RISE,
    start: Fraction = 0.04,
    end: Fraction = 0.0,
    shape: Literal['linear', 'cosine'] = 'cosine',
) -> Schedule:
    """From `start` up to the peak over `rise`, then down to `end` (Smith & Topin 2018)."""
    top = span.part(rise, 'rise')
    up, down = _ramp(start, 1.0, top, shape), _ramp(1.0, end, max(span.steps - top, 1), shape)
    return optax.join_schedules([up, down], [top])


def warmup_stable_decay(
    span: Span,
    *,
    decay: Duration = DECAY,
    end: Fraction = 0.0,
    shape: Literal['linear', 'cosine', 'sqrt'] = 'linear',
) -> Schedule:
    """The peak, then down to `end` over the last `decay` of the run (Hu et al. 2024, section 4).

    shape: 'sqrt' falls as 1 - sqrt(x) (Hägele et al. 2024, equation 1).
    """
    steps = span.part(decay, 'decay')
    start = span.steps - steps
    return optax.join_schedules(
        [optax.constant_schedule(1.0), _ramp(1.0, end, steps, shape)], [start]
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    entry.__name__: entry
    for entry in (
        constant, linear, cosine, exponential, piecewise, inverse_square_root, one_cycle,
        warmup_stable_decay,
    )
}  # fmt: skip


def build(config: ScheduleConfig, peak: float, horizon: Horizon) -> Schedule:
    """The learning rate at a step, an int or a traced scalar: float32 [].

    Raises: ConfigError for unknown names and options, and durations that the run cannot hold.
    """
    warmup = horizon.steps(config.warmup)
    if horizon.total_steps is not None and warmup >= max(horizon.total_steps, 1):
        expected = f'less than the run of {horizon.total_steps} steps'
        raise _wrong('warmup', expected, config.warmup, warmup)
    entry = options.bind(SCHEDULES, config.name, config.options, ScheduleConfig, WHERE)
    shape = entry(Span(horizon, warmup))

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        value = shape(jnp.maximum(step - warmup, 0.0))
        return peak * jnp.asarray(value * jnp.minimum(step / max(warmup, 1), 1.0), jnp.float32)

    return schedule if warmup else lambda step: peak * jnp.asarray(shape(step), jnp.float32)


def _ramp(start: float, end: float, steps: int, shape: str) -> Schedule:
    """From `start` to `end` over `steps`, and `end` ever after."""
    progress = {
        'linear': lambda x: x,
        'cosine': lambda x: (1.0 - jnp.cos(jnp.pi * x)) / 2.0,
        'sqrt': jnp.sqrt,
    }[shape]
    return lambda t: start + (end - start) * progress(jnp.minimum(t / steps, 1.0))


def _wrong(option: str, expected: str, got: Duration, steps: int) -> ConfigError:
    return ConfigError(
        f'bad value for {WHERE}.{option}: expected {expected}, got {got} = {steps} steps; '
        f'set it with --{WHERE}.{option}=...'
    )
