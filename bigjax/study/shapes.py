"""Shapes of a config's proportions, and the rungs of a ladder: a shape trained for a budget."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from bigjax import trees
from bigjax.config import Config, with_values
from bigjax.errors import ConfigError
from bigjax.train.build import build
from bigjax.train.model_flops import model_flops

TOLERANCE = 0.01  # of a budget
LARGEST = 4096  # multiples of the smallest width that are looked at


class Shape(NamedTuple):
    """Fields of the model, and what a config of that shape counts: FLOPs as the ledger does."""

    fields: Mapping[str, int]
    params: int
    flops_a_step: int
    tokens_a_step: int


class Rung(NamedTuple):
    """A shape and how long it trains."""

    budget: float
    shape: Shape
    steps: int

    @property
    def flops(self) -> int:
        """Of all steps; within a hundredth of the budget."""
        return self.steps * self.shape.flops_a_step

    @property
    def tokens(self) -> int:
        """Of all steps."""
        return self.steps * self.shape.tokens_a_step


class Shapes:
    """The shapes of a config's proportions, by multiples of the smallest width."""

    def __init__(self, config: Config) -> None:
        """Raises: ConfigError unless the model is a transformer that says its shape."""
        options = config.model.options
        missing = [name for name in ('layers', 'width', 'heads') if name not in options]
        if config.model.name != 'transformer' or missing:
            raise ConfigError(
                'a ladder expects config.model to be a transformer with layers, width and heads, '
                f'got {config.model.name} {"without " + missing[0] if missing else ""}'
            )
        self._config = config
        self._splits = build(config).splits
        self.at = cache(self._at)

    def _at(self, multiple: int) -> Shape:
        fields = _fields(self._config.model.options, multiple)
        values = {f'model.{name}': value for name, value in fields.items()}
        run = build(with_values(self._config, **values), self._splits)
        tokens = run.splits.spec.tokens
        if tokens is None:
            raise ConfigError('a ladder expects data with tokens; config.data has none')
        size = run.config.train.batch_size
        flops = model_flops(run).a_step
        return Shape(values, trees.count(run.abstract.params), flops, size * tokens)

    def rung(self, budget: float, tokens_per_param: float) -> Rung:
        """The shape whose D / N is nearest to that, in its logarithm. Raises: ConfigError."""

        def too_long(multiple: int) -> float:
            shape = self.at(multiple)
            tokens = budget / shape.flops_a_step * shape.tokens_a_step
            return float(np.log(tokens / shape.params / tokens_per_param))

        return self._filled(budget, self._nearest(too_long))

    def sized(self, budget: float, params: float) -> Rung:
        """The shape whose N is nearest to that. Raises: ConfigError."""
        return self._filled(
            budget, self._nearest(lambda k: float(np.log(params / self.at(k).params)))
        )

    def _nearest(self, falling: Callable[[int], float]) -> Shape:
        """Where a falling function of the multiple is nearest to 0."""
        low, high = 1, 2
        while falling(high) > 0:
            if high >= LARGEST:
                raise ConfigError(
                    f'a ladder: no width up to {LARGEST} heads is enough; lower budgets'
                )
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if falling(middle) > 0 else (low, middle)
        return self.at(min((low, high), key=lambda multiple: abs(falling(multiple))))

    def _filled(self, budget: float, shape: Shape) -> Rung:
        steps = round(budget / shape.flops_a_step)
        if abs(steps * shape.flops_a_step / budget - 1) > TOLERANCE:
            raise ConfigError(
                f'budget {budget:.3g}: steps of {shape.flops_a_step:.3g} FLOPs do not come within '
                f'{TOLERANCE:.0%} of it; lower train.batch_size, or raise the budget'
            )
        return Rung(budget, shape, steps)


def _fields(options: Mapping[str, Any], multiple: int) -> dict[str, int]:
    """The proportions of `options` at that multiple of a head, or of a group of heads."""
    layers, width, heads = options['layers'], options['width'], options['heads']
    group = heads // options['kv_heads'] if options.get('kv_heads') else 1
    unit = width * group // heads
    found = {
        'layers': max(1, round(layers * multiple * unit / width)),
        'width': multiple * unit,
        'heads': multiple * group,
    }
    if options.get('kv_heads'):
        found['kv_heads'] = multiple
    if options.get('mlp'):
        found['mlp'] = round(options['mlp'] * multiple * unit / width)
    return found


def climb(
    config: Config, budgets: Sequence[float], tokens_per_param: Sequence[float]
) -> list[Rung]:
    """A rung for each budget and D / N, equal ones once. Raises: ConfigError."""
    for name, values in (('budgets', budgets), ('tokens_per_param', tokens_per_param)):
        if not values or not all(np.isfinite(value) and value > 0 for value in values):
            raise ConfigError(f'--{name}: expected finite numbers above 0, got {list(values)}')
    shapes = Shapes(config)
    found = (shapes.rung(budget, ratio) for budget in budgets for ratio in tokens_per_param)
    return list({(rung.budget, rung.shape.params): rung for rung in found}.values())
