"""`bigjax plan`: whether a config fits hardware that is not here, how fast, and for how much."""

import math
import sys
from dataclasses import dataclass
from typing import Any

from bigjax import schema
from bigjax.config import Config
from bigjax.errors import ConfigError, EnvironmentProblem
from bigjax.plan.ask import OPTIMIZATION, ask, ask_sketch
from bigjax.plan.compile import Answer
from bigjax.plan.roofline import HOUR, roofline, speed
from bigjax.plan.search import fits, largest_batch, meshes, search
from bigjax.plan.targets import Target

MAX_COMPILATIONS = 12


@dataclass(frozen=True)
class Budget:
    """tokens: to train on (examples, where rows have no tokens). price: of a chip for an hour."""

    tokens: float
    price: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f'--{name}: expected a number above 0, got {value}')


@dataclass(frozen=True)
class Plan:
    """What was found. answer: the config's own step. largest: with the largest batch that fits.

    ranked: the answers of the search, the best first.
    """

    config: Config
    target: Target
    answer: Answer
    largest: Answer | None
    ranked: list[Answer]
    budget: Budget | None


def make(
    config: Config,
    target: Target,
    *,
    with_search: bool = False,
    with_largest: bool = True,
    max_compilations: int = MAX_COMPILATIONS,
    optimization: str = OPTIMIZATION,
    budget: Budget | None = None,
) -> Plan:
    """Compiles the config's step, then looks for the largest batch, or searches instead.

    Raises: ConfigError, DataError, EnvironmentProblem, as `ask.ask`.
    """
    if with_search and target.chip is None:
        raise ConfigError('--search ranks by speed, which a CPU target has none of; name a chip')
    if max_compilations < 1:
        raise ConfigError(f'--max_compilations: expected at least 1, got {max_compilations}')

    def compile(changed: Config) -> Answer | None:
        try:
            return ask(changed, target, optimization)
        except EnvironmentProblem as problem:  # of one mesh or batch, not of all
            print(f'left out: {problem}', file=sys.stderr)
            return None

    answer = ask(config, target, optimization)
    largest, ranked = None, []
    if with_search:
        sizes = answer.mesh
        state = answer.state * sizes['fsdp'] * sizes['expert'] * sizes['tensor']  # about
        drawn = ask_sketch(config, target, meshes(config, target, state))
        ranked = search(config, target, answer, drawn, compile, max_compilations)
    elif with_largest:
        largest = largest_batch(config, answer, target, compile)
    return Plan(config, target, answer, largest, ranked, budget)


def to_dict(plan: Plan) -> dict[str, Any]:
    """Everything, for scripts: `plan.json`."""
    return {
        'target': schema.to_dict(plan.target),
        'is_estimate': plan.target.is_estimate,
        'config': schema.to_dict(plan.config),
        'step': summary(plan.answer, plan),
        'largest_batch': plan.largest and summary(plan.largest, plan),
        'search': [summary(answer, plan) for answer in plan.ranked],
    }


def summary(answer: Answer, plan: Plan) -> dict[str, Any]:
    """One compiled step with what follows from it, as plain values."""
    values = schema.to_dict(answer)
    values |= {'peak': answer.peak, 'usable': plan.target.usable, 'fits': fits(answer, plan.target)}
    chip = plan.target.chip
    if chip is None or answer.traffic is None:
        return values
    line, fast = roofline(answer, chip), speed(answer, chip)
    values['roofline'] = {**vars(line), 'seconds': line.seconds, 'binds': line.binds}
    values['at_most'] = {f'{fast.unit}_per_second': fast.rate, 'mfu': fast.mfu}
    if plan.budget is not None:
        values['at_least'] = cost(plan, fast.rate)
    return values


def cost(plan: Plan, rate: float) -> dict[str, float]:
    """Hours and money to the budget at so many tokens (or examples) a second."""
    assert plan.budget is not None
    hours = plan.budget.tokens / rate / HOUR
    chips = plan.target.num_devices // plan.target.devices_a_chip
    return {'hours': hours, 'price': hours * chips * plan.budget.price}
