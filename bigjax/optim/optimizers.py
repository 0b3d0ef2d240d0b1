"""One table of optimizers over Optax.

An entry is a function from `Parts` and its own options (keyword-only, checked by their annotations)
to a chain that reads as the method does, from gradients to updates. Around it `build` puts clipping
by the global norm in front, the factors of the groups behind, and freezing outside.

Weight decay stands where the chain has `parts.decay`: in front it is the L2 penalty of the gradient
(the older methods, as in PyTorch; adam too: adamw decouples it); behind the method's own step it is
decoupled, times the learning rate (Loshchilov & Hutter 2019, as PyTorch and Optax scale it).

The learning rate multiplies last, so that momentum buffers hold none (as in PyTorch; no different
from the papers while the rate is constant). prodigy, dog, dowg and cocob find their own scale: give
them a learning_rate of 1.

What Optax has and this table leaves out: methods that need more than the gradient (lbfgs,
polyak_sgd and momo the loss, sam a second gradient, sophia a Hessian); schedule_free, which
evaluates other parameters than it trains; rprop, on which a schedule has no effect; noisy_sgd,
dpsgd, galore and the optimistic methods, which belong to other settings; variants of what is here.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec
from optax import GradientTransformation as Transform
from optax import chain, contrib

from bigjax import trees
from bigjax.config import GroupConfig, OptimizerConfig
from bigjax.optim import groups, options, parametrization
from bigjax.optim.muon import muon
from bigjax.optim.parametrization import Scaling
from bigjax.optim.parts import Parts, add_decayed, scale_each
from bigjax.optim.schedules import Schedule
from bigjax.optim.stacked import layer_factors
from bigjax.schema import NonNegative, Positive, PositiveInt, Rate

WHERE = 'config.optimizer'

Entry = Callable[..., Transform]


def sgd(parts: Parts) -> Transform:
    """Robbins & Monro 1951."""
    return chain(parts.decay, parts.rate)


def momentum(parts: Parts, *, momentum: Rate = 0.9) -> Transform:
    """v = momentum v + g (Polyak 1964)."""
    return chain(parts.decay, optax.trace(momentum), parts.rate)


def nesterov(parts: Parts, *, momentum: Rate = 0.9) -> Transform:
    """v = momentum v + g, and the step g + momentum v (Sutskever et al. 2013, as in PyTorch)."""
    return chain(parts.decay, optax.trace(momentum, nesterov=True), parts.rate)


def signum(parts: Parts, *, b1: Rate = 0.9) -> Transform:
    """Bernstein et al. 2018, algorithm 2."""
    return chain(optax.ema(b1, debias=False), optax.scale_by_sign(), parts.decay, parts.rate)


def lion(parts: Parts, *, b1: Rate = 0.9, b2: Rate = 0.99) -> Transform:
    """Chen et al. 2023, algorithm 2."""
    return chain(optax.scale_by_lion(b1, b2), parts.decay, parts.rate)


def adagrad(
    parts: Parts, *, initial_accumulator_value: NonNegative = 0.1, eps: Positive = 1e-7
) -> Transform:
    """g / sqrt(initial value + sum of g^2 + eps) (Duchi et al. 2011)."""
    return chain(parts.decay, optax.scale_by_rss(initial_accumulator_value, eps), parts.rate)


def adadelta(parts: Parts, *, rho: Rate = 0.9, eps: Positive = 1e-6) -> Transform:
    """Zeiler 2012, algorithm 1."""
    return chain(parts.decay, optax.scale_by_adadelta(rho, eps), parts.rate)


def rmsprop(
    parts: Parts,
    *,
    decay: Rate = 0.9,
    eps: Positive = 1e-8,
    centered: bool = False,
    momentum: Rate = 0.0,
) -> Transform:
    """g / sqrt(mean of g^2 + eps) (Hinton 2012); `centered` takes the variance (Graves 2013)."""
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    average = optax.trace(momentum) if momentum else optax.identity()
    return chain(parts.decay, scale(decay, eps), average, parts.rate)


def _adam(scale: Any, *, decoupled: bool = False, b2: float = 0.999, eps: float = 1e-8) -> Entry:
    """An entry for one of Adam's family: `scale(b1, b2, eps)`, and its defaults."""

    def entry(parts: Parts, *, b1: Rate = 0.9, b2: Rate = b2, eps: Positive = eps) -> Transform:
        step = scale(b1=b1, b2=b2, eps=eps)
        return chain(*([step, parts.decay] if decoupled else [parts.decay, step]), parts.rate)

    return entry


def _nadam(b1: float, b2: float, eps: float) -> Transform:
    return optax.scale_by_adam(b1, b2, eps, nesterov=True)


def adan(
    parts: Parts, *, b1: Rate = 0.98, b2: Rate = 0.92, b3: Rate = 0.99, eps: Positive = 1e-8
) -> Transform:
    """Xie et al. 2024, algorithm 1; the betas are 1 - the paper's, as Adam's are."""
    return chain(optax.scale_by_adan(b1, b2, b3, eps), parts.decay, parts.rate)


def ademamix(
    parts: Parts,
    *,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    b3: Rate = 0.9999,
    alpha: NonNegative = 5.0,
    eps: Positive = 1e-8,
) -> Transform:
    """adamw plus alpha times a second, slow average (Pagliardini et al. 2024, algorithm 1)."""
    return chain(contrib.scale_by_ademamix(b1, b2, b3, alpha, eps), parts.decay, parts.rate)


def adafactor(
    parts: Parts,
    *,
    decay_rate: Positive = 0.8,
    clipping_threshold: Positive = 1.0,
    min_dim_size_to_factor: PositiveInt = 128,
    multiply_by_parameter_scale: bool = True,
    momentum: Rate = 0.0,
    eps: Positive = 1e-30,
) -> Transform:
    """Shazeer & Stern 2018, algorithm 4; second moments of smaller matrices are kept whole."""
    rms = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor, epsilon=eps
    )
    clip = optax.clip_by_block_rms(clipping_threshold)
    scale = optax.scale_by_param_block_rms() if multiply_by_parameter_scale else optax.identity()
    average = optax.ema(momentum, debias=False) if momentum else optax.identity()
    return chain(parts.per_layer(chain(rms, clip, scale)), average, parts.decay, parts.rate)


def sm3(parts: Parts, *, momentum: Rate = 0.9, eps: Positive = 1e-8) -> Transform:
    """Anil et al. 2019, algorithm SM3-II."""
    return chain(parts.per_layer(optax.scale_by_sm3(momentum, eps=eps)), parts.decay, parts.rate)


def novograd(parts: Parts, *, b1: Rate = 0.9, b2: Rate = 0.25, eps: Positive = 1e-6) -> Transform:
    """One second moment a layer (Ginsburg et al. 2019, algorithm 1)."""
    return chain(parts.per_layer(optax.scale_by_novograd(b1, b2, eps)), parts.decay, parts.rate)


def lamb(parts: Parts, *, b1: Rate = 0.9, b2: Rate = 0.999, eps: Positive = 1e-6) -> Transform:
    """adamw, but a layer's step is as long as its weights (You et al. 2020, algorithm 2)."""
    trust = parts.per_layer(optax.scale_by_trust_ratio())
    return chain(optax.scale_by_adam(b1, b2, eps), parts.decay, trust, parts.rate)


def lars(
    parts: Parts,
    *,
    momentum: Rate = 0.9,
    trust_coefficient: Positive = 0.001,
    eps: NonNegative = 0.0,
) -> Transform:
    """momentum, with a layer's gradient scaled by its weights (You et al. 2017, algorithm 1)."""
    trust = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps)
    return chain(parts.decay, parts.per_layer(trust), optax.trace(momentum), parts.rate)


def fromage(parts: Parts, *, min_norm: Positive = 1e-6) -> Transform:
    """Each layer turned by the same angle (Bernstein et al. 2020, algorithm 1)."""
    return chain(parts.decay, parts.per_layer(optax.fromage(parts.schedule, min_norm)))


def madgrad(parts: Parts, *, momentum: Rate = 0.9, eps: Positive = 1e-6) -> Transform:
    """Dual averaging with a cube root (Defazio & Jelassi 2022, algorithm 1)."""
    return chain(parts.decay, contrib.madgrad(parts.schedule, momentum, eps=eps))


def prodigy(
    parts: Parts,
    *,
    b1: Rate = 0.9,
    b2: Rate = 0.999,
    eps: Positive = 1e-8,
    estim_lr0: Positive = 1e-6,
    estim_lr_coef: Positive = 1.0,
    safeguard_warmup: bool = False,
) -> Transform:
    """adam that estimates its scale (Mishchenko & Defazio 2024, algorithm 4)."""
    own = {'estim_lr0': estim_lr0, 'estim_lr_coef': estim_lr_coef}
    method = contrib.prodigy(
        parts.schedule, (b1, b2), eps=eps, safeguard_warmup=safeguard_warmup, **own
    )
    return chain(parts.decay, method)


def dog(parts: Parts, *, initial_distance: Positive = 1e-6, eps: Positive = 1e-8) -> Transform:
    """sgd whose rate is distance moved over gradients seen (Ivgi et al. 2023, section 2).

    initial_distance: relative to 1 + the norm of the parameters; 1e-4 with batch norm.
    """
    return chain(parts.decay, contrib.dog(parts.schedule, ('heuristic', initial_distance), eps))


def dowg(parts: Parts, *, eps: Positive = 1e-4) -> Transform:
    """dog over gradients weighted by distance (Khaled et al. 2023, algorithm 1)."""
    return chain(parts.decay, contrib.dowg(parts.schedule, eps=eps))


def cocob(parts: Parts, *, alpha: Positive = 100.0, eps: Positive = 1e-8) -> Transform:
    """Coin betting (Orabona & Tommasi 2017, algorithm 2)."""
    return chain(parts.decay, contrib.cocob(parts.schedule, alpha, eps))


OPTIMIZERS: dict[str, Entry] = {
    'adam': _adam(optax.scale_by_adam),  # Kingma & Ba 2015, algorithm 1
    'adamw': _adam(optax.scale_by_adam, decoupled=True),  # Loshchilov & Hutter 2019
    'amsgrad': _adam(optax.scale_by_amsgrad),  # Reddi et al. 2018
    'adamax': _adam(optax.scale_by_adamax),  # Kingma & Ba 2015, algorithm 2
    'nadam': _adam(_nadam),  # Dozat 2016, with a constant b1
    'nadamw': _adam(_nadam, decoupled=True),
    'radam': _adam(optax.scale_by_radam),  # Liu et al. 2020, algorithm 2
    'yogi': _adam(optax.scale_by_yogi, eps=1e-3),  # Zaheer et al. 2018, algorithm 2
    'adabelief': _adam(optax.scale_by_belief, decoupled=True, eps=1e-16),  # Zhuang et al. 2020
    'adopt': _adam(contrib.scale_by_adopt, decoupled=True, b2=0.9999, eps=1e-6),  # Taniguchi 2024
}
OPTIMIZERS |= {
    entry.__name__: entry
    for entry in (
        sgd, momentum, nesterov, signum, lion, adagrad, adadelta, rmsprop, adan, ademamix,
        adafactor, sm3, novograd, lamb, lars, fromage, muon, madgrad, prodigy, dog, dowg, cocob,
    )
}  # fmt: skip


def build(
    config: OptimizerConfig,
    schedule: Schedule,
    params: Any,
    axes: Any,
    scaling: Scaling | None = None,
) -> Transform:
    """The optimizer of a run: from gradients to what is added to the parameters.

    schedule: from the step to the learning rate, whose peak is `config.learning_rate`.
    params: arrays or abstract shapes; axes: the same tree with PartitionSpecs of logical names.
    scaling: the model against its base, of a parametrization other than the standard one.

    A leaf in a group with a learning rate of 0 is frozen: its update is exactly 0, it has no state,
    and it does not count in the norm that clips the rest.

    Raises: ConfigError for an unknown name or option, patterns that do not cover the parameters,
    groups that freeze them all, and methods for which the parametrization has no rates.
    """
    entry = options.bind(OPTIMIZERS, config.name, config.options, OptimizerConfig, WHERE)
    group_of = groups.by_leaf(params, config.groups, f'{WHERE}.groups')
    trained = groups.trained(params, config.groups, f'{WHERE}.groups')

    depth = layer_factors(params, axes, config.layer_decay, f'{WHERE}.layer_decay')
    ones = jax.tree.map(lambda _: 1.0, params)
    rates, decays, steepness = ones, ones, ones
    if scaling is not None:
        family = parametrization.family(config, scaling)
        rates, decays = scaling.rates(family), scaling.decays(family)
        # Steeper gradients are to Adam what a smaller epsilon is.
        steepness = jax.tree.map(lambda epsilon: 1 / epsilon, scaling.epsilons())

    def masked(tree: Any) -> Any:
        return jax.tree.map(lambda keep, leaf: leaf if keep else optax.MaskedNode(), trained, tree)

    def decay_of(name: str, p: Any, names: PartitionSpec, group: GroupConfig, f: float) -> float:
        decays = groups.kind(name, p, names) in config.decay
        return config.weight_decay * group.weight_decay * f if decays else 0.0

    def rate_of(group: GroupConfig, of_depth: Any, f: float) -> Any:
        return group.learning_rate * of_depth * f

    parts = Parts(
        schedule=schedule,
        peak=config.learning_rate,
        decay=add_decayed(masked(trees.map_with_name(decay_of, params, axes, group_of, decays))),
        shapes=masked(params),
        axes=masked(axes),
        base_shapes=masked(params if scaling is None else scaling.base),
    )
    optimizer = chain(
        optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        scale_each(masked(steepness)),
        entry(parts),
        scale_each(masked(jax.tree.map(rate_of, group_of, depth, rates))),
    )
    if all(jax.tree.leaves(trained)):
        return optimizer
    labels = jax.tree.map(lambda keep: 'trained' if keep else 'frozen', trained)
    return optax.partition({'trained': optimizer, 'frozen': optax.set_to_zero()}, labels)
