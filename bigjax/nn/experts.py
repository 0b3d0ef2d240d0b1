"""A mixture of experts: of E MLPs each token goes through the k that a router chooses for it.

Shapes: B rows, T tokens a row, D width, F hidden width, E experts, k of them a token, C places of
an expert in a row, M the rows of a product.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.nn import initializers
from bigjax.nn.activations import ACTIVATIONS, Activation, is_gated
from bigjax.nn.initializers import Initializer
from bigjax.nn.linear import add_bias
from bigjax.nn.params import param
from bigjax.sharding.rules import ACTIVATION_RULES, IN_USE_RULES, constrain, spec

Weights = Mapping[str, jax.Array]
Product = Callable[[str, jax.Array], jax.Array]
AXES = {'gate': ('embed', 'mlp'), 'dense': ('embed', 'mlp'), 'out': ('mlp', 'embed')}


class Route(NamedTuple):
    """experts: int32 [B, T, k], the best first; E, which is none, where there is no token.
    shares: float32 [B, T, k], by which their outputs are weighed."""

    experts: jax.Array
    shares: jax.Array


class Traffic(NamedTuple):
    """Of one layer, sums over the tokens of a batch: tokens; choices of each expert, [E], and how
    many were dropped; entropy of the router, in nats; both losses without their coefficients."""

    tokens: jax.Array
    load: jax.Array
    dropped: jax.Array
    entropy: jax.Array
    balance: jax.Array
    z: jax.Array


class Experts(nn.Module):
    """[B, T, D] -> [B, T, D], of `features` F.

    The router, x W in float32, gives each token the k experts of highest probability. Their outputs
    are weighed by it, scaled to sum to one (Jiang et al. 2024, section 2.1); with k = 1 by the
    probability itself (Fedus et al. 2021, equation 2), or nothing would teach the router.

    capacity_factor: every row is a group (Lepikhin et al. 2020, section 3.1), so that nothing
        depends on the mesh: an expert takes the first ceil(capacity_factor k T / E) tokens of a row
        that choose it; later ones get nothing from it. Unlike there, in algorithm 1, no first
        choice goes before second choices of earlier tokens: what is causal stays so. (C grows with
        T, though: a text that is read token by token loses nothing.) None drops nothing, by
        `lax.ragged_dot`, which off TPUs costs the products of all experts with all tokens (jax
        0.10.2 to 0.12.0).
    balance, z: coefficients of two losses, sown in 'losses', one a row [B]. Of the n tokens of a
        row, with f_i the part of their k n choices that is of expert i, P_i its mean probability,
        and x the logits: E sum_i f_i P_i (Fedus et al. 2021, equations 4 to 6), which is 1 if all
        experts are alike; and the mean of (log sum_i exp x_i)^2 (Zoph et al. 2022, equation 5). One
        of rows, not of batches, is the same on any mesh and with any accumulation.

    A `Traffic` is sown in 'diagnostics'. Where `real` [B, T] is False there is padding: it takes no
    place, gives zero, and does not count.
    """

    experts: int
    per_token: int
    features: int
    activation: Activation
    capacity_factor: float | None = None
    balance: float = 0.0
    z: float = 0.0
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun()
    out_init: Initializer = initializers.lecun()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array | None = None) -> jax.Array:
        real = jnp.ones(x.shape[:2], bool) if real is None else real
        shape, axes = (x.shape[-1], self.experts), ('embed', 'router')
        router = param(self, 'router_kernel', self.kernel_init, shape, axes)
        logits = jnp.matmul(x.astype(jnp.float32), router, precision=lax.Precision.HIGHEST)
        route = choose(logits, self.per_token, real)
        weights, x = self._weights(x.shape[-1]), x.astype(self.dtype)
        kept = choices = real.sum() * self.per_token
        if self.capacity_factor is None:
            y = dropless(x, route, weights, self.activation)
        else:
            fair = self.per_token * x.shape[1] / self.experts
            places = min(math.ceil(self.capacity_factor * fair), x.shape[1])
            slots = assign(route.experts, self.experts, places)
            kept = jnp.sum(slots < self.experts * places)
            y = within_capacity(x, route, slots, places, weights, self.activation)
        self._sow(logits, route, real, choices - kept)
        return y.astype(self.dtype)

    def _weights(self, width: int) -> Weights:
        sizes = {'experts': self.experts, 'embed': width, 'mlp': self.features}
        found = {}
        for kind in AXES if is_gated(self.activation) else ('dense', 'out'):
            for name in (f'{kind}_kernel', f'{kind}_bias')[: 1 + self.use_bias]:
                init, dtype = initializers.zeros, jnp.float32
                if name.endswith('kernel'):
                    init = self.out_init if kind == 'out' else self.kernel_init
                    init, dtype = initializers.of_each(init), self.dtype
                shape = tuple(sizes[axis] for axis in _axes(name))
                found[name] = param(self, name, init, shape, _axes(name), dtype)
        return found

    def _sow(self, logits: jax.Array, route: Route, real: jax.Array, dropped: jax.Array) -> None:
        chances, logs = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
        mask, tokens = real[..., None], real.sum(1)
        chosen = jax.nn.one_hot(route.experts, self.experts).sum((1, 2))  # [B, E]
        count = jnp.maximum(tokens, 1)[:, None]
        parts = chosen / (self.per_token * count), jnp.sum(chances * mask, 1) / count
        balance = self.experts * jnp.sum(parts[0] * parts[1], -1)
        squares = jax.nn.logsumexp(logits, axis=-1) ** 2
        z = jnp.sum(squares * real, 1) / count[:, 0]
        self.sow('losses', 'router', self.balance * balance + self.z * z)
        self.sow(
            'diagnostics',
            'router',
            Traffic(
                tokens=tokens.sum().astype(jnp.float32),
                load=chosen.sum(0),
                dropped=dropped.astype(jnp.float32),
                entropy=-jnp.sum(chances * logs * mask),
                balance=jnp.sum(balance * tokens),
                z=jnp.sum(z * tokens),
            ),
        )


def metrics(diagnostics: Any) -> dict[str, jax.Array]:
    """Of every `Traffic` in a collection, the mean over layers; {} if there is none.

    router_dropped: part of all choices; router_load: of the busiest expert over the mean of all;
    router_entropy: nats a token; router_balance and router_z: the two losses.
    """
    found = jax.tree.leaves(diagnostics, is_leaf=lambda node: isinstance(node, Traffic))
    if not found:
        return {}
    layers = Traffic(*(jnp.stack(parts) for parts in zip(*found, strict=True)))
    choices, tokens = layers.load.sum(-1), layers.tokens
    each = {
        'dropped': layers.dropped / choices,
        'load': layers.load.max(-1) * layers.load.shape[-1] / choices,
        'entropy': layers.entropy / tokens,
        'balance': layers.balance / tokens,
        'z': layers.z / tokens,
    }
    return {f'router_{name}': jnp.mean(value) for name, value in each.items()}


def choose(logits: jax.Array, per_token: int, real: jax.Array) -> Route:
    """The k best of logits [B, T, E]; of two alike, the first."""
    chances = left = jax.nn.softmax(logits)
    best: list[jax.Array] = []
    for _ in range(per_token):  # not lax.top_k, for which XLA gathers all rows on every device
        best.append(left.argmax(-1))
        left = jnp.where(jax.nn.one_hot(best[-1], logits.shape[-1], dtype=bool), -1, left)
    experts = jnp.stack(best, axis=-1)
    shares = jnp.take_along_axis(chances, experts, axis=-1)
    if per_token > 1:
        shares /= shares.sum(-1, keepdims=True)
    return Route(jnp.where(real[..., None], experts, logits.shape[-1]), shares)


def assign(experts: jax.Array, count: int, places: int) -> jax.Array:
    """Where each choice [B, T, k] of E experts is computed: e C + place; E C, which is nowhere, if
    it is dropped."""
    chosen = jax.nn.one_hot(experts, count, dtype=jnp.int32).sum(2)
    before = jnp.cumsum(chosen, axis=1) - chosen  # no token chooses an expert twice
    place = jnp.take_along_axis(before, jnp.minimum(experts, count - 1), axis=2)
    kept = (experts < count) & (place < places)
    return jnp.where(kept, experts * places + place, count * places)


def within_capacity(
    x: jax.Array,
    route: Route,
    slots: jax.Array,
    places: int,
    weights: Weights,
    activation: Activation,
) -> jax.Array:
    """Float32 [B, T, D], by products of [E, B, C, D].

    Over the mesh axis `expert` tokens change places all to all, twice: before and after, rows are
    split there; between, experts.
    """
    batch, _, per_token = slots.shape
    count, width = weights['out_kernel'].shape[0], x.shape[-1]

    def product(name: str, x: jax.Array) -> jax.Array:
        y = jnp.einsum('ebcd,edf->ebcf', x, weights[f'{name}_kernel'])
        bias = weights.get(f'{name}_bias')
        return y if bias is None else add_bias(y, bias[:, None, None])

    # every choice has a copy of its token, and so no gradient is a sum in an order left open
    x = constrain(x, ('batch', None, 'embed'))
    slots, copies = slots.reshape(batch, -1), jnp.repeat(x, per_token, axis=1)
    choices = jnp.full((batch, count * places), copies.shape[1])
    numbers = jnp.arange(copies.shape[1])
    choices = jax.vmap(lambda row, at: row.at[at].set(numbers, mode='drop'))(choices, slots)
    rows, spread = ('batch', None, 'places', 'embed'), ('experts', 'rows', 'places', 'embed')
    there = constrain(_take(copies, choices).reshape(batch, count, places, width), rows)
    there = constrain(jnp.swapaxes(there, 0, 1), spread)
    y = constrain(_mlp(there, product, activation), spread)
    y = constrain(constrain(jnp.swapaxes(y, 0, 1), rows), ('batch', None, None, 'embed'))
    return _weighed(_take(y.reshape(batch, -1, width), slots), route.shares)


def dropless(x: jax.Array, route: Route, weights: Weights, activation: Activation) -> jax.Array:
    """Float32 [B, T, D], by products of tokens sorted by expert.

    Over the mesh axis `expert` each device takes the tokens of all that share its other axes
    through its own experts, and hands back their parts of the sums.
    """
    sizes = _mesh_sizes()
    if math.prod(sizes.values()) == 1:
        return _sorted(x, route, weights, activation)
    rows, _ = spec(('batch', 'sequence', None), x.shape, sizes, ACTIVATION_RULES)
    kernels = {
        name: spec(_axes(name), weight.shape, sizes, IN_USE_RULES)[0]
        for name, weight in weights.items()
    }
    is_split = 'expert' in (rows[0] or ())

    def local(x: jax.Array, route: Route, weights: Weights) -> jax.Array:
        if is_split:
            gather = partial(lax.all_gather, axis_name='expert', tiled=True)
            x, route = gather(x), Route(*map(gather, route))
        weights, count = dict(weights), weights['out_kernel'].shape[0]
        own = route.experts - lax.axis_index('expert') * count
        own = jnp.where((own >= 0) & (own < count), own, count)
        is_partial = kernels['out_kernel'][1] is not None
        if is_partial and 'out_bias' in weights:  # once, not once a part of the sum
            weights['out_bias'] *= lax.axis_index('tensor') == 0
        y = _sorted(x, Route(own, route.shares), weights, activation)
        y = lax.psum(y, 'tensor') if is_partial else y
        if is_split:
            return lax.psum_scatter(y, 'expert', scatter_dimension=0, tiled=True)
        return lax.psum(y, 'expert')

    # one spec stands for both parts of a route
    return jax.shard_map(local, in_specs=(rows, rows, kernels), out_specs=rows)(x, route, weights)


def _sorted(x: jax.Array, route: Route, weights: Weights, activation: Activation) -> jax.Array:
    count, width = weights['out_kernel'].shape[0], x.shape[-1]
    experts = route.experts.reshape(-1)
    order = jnp.argsort(experts, stable=True)
    ordered, sizes = experts[order], jnp.bincount(experts, length=count)

    def product(name: str, x: jax.Array) -> jax.Array:
        y = lax.ragged_dot(x, weights[f'{name}_kernel'], sizes)
        bias = weights.get(f'{name}_bias')
        return y if bias is None else add_bias(y, jnp.take(bias, ordered, axis=0, mode='clip'))

    # what is nobody's comes last, where a ragged product may leave anything
    real = ordered[:, None] < count
    copies = jnp.repeat(x.reshape(-1, width), route.experts.shape[-1], axis=0)
    y = _mlp(jnp.where(real, copies[order], 0), product, activation)
    return _weighed(jnp.where(real, y, 0)[jnp.argsort(order)], route.shares)


def _mlp(x: jax.Array, product: Product, activation: Activation) -> jax.Array:
    hidden = ACTIVATIONS[activation](product('gate' if is_gated(activation) else 'dense', x))
    return product('out', hidden * product('dense', x) if is_gated(activation) else hidden)


def _weighed(y: jax.Array, shares: jax.Array) -> jax.Array:
    """Outputs of choices, in their order, as float32 sums of those of a token."""
    return jnp.sum(y.reshape(*shares.shape, -1) * shares[..., None], axis=2)


def _take(x: jax.Array, places: jax.Array) -> jax.Array:
    """x [B, N, D] at places [B, P] of each row: [B, P, D]; zeros from past its end."""
    return jax.vmap(lambda row, at: row.at[at].get(mode='fill', fill_value=0))(x, places)


def _axes(name: str) -> tuple[str, ...]:
    """Logical axes of a weight."""
    kind, _, leaf = name.partition('_')
    return ('experts', *(AXES[kind] if leaf == 'kernel' else AXES[kind][1:]))


def _mesh_sizes() -> Mapping[str, int]:
    return jax.sharding.get_abstract_mesh().shape
