"""The Transformer block (Vaswani et al. 2017, section 3.1), and stacks of it.

Shapes: B batch, T sequence, D width, F hidden width, L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.nn import initializers
from bigjax.nn.activations import Activation
from bigjax.nn.attend import Implementation
from bigjax.nn.attention import PROJECTION, Attention, Cache
from bigjax.nn.dropout import Dropout, drop_samples
from bigjax.nn.experts import Experts
from bigjax.nn.initializers import Initializer
from bigjax.nn.linear import Dense, Hidden
from bigjax.nn.multipliers import STANDARD, Multipliers, times
from bigjax.nn.norms import make_norm
from bigjax.nn.positions import Frequencies
from bigjax.schema import NonNegative, Positive, PositiveInt, Rate
from bigjax.sharding.rules import constrain

UNROLLED_LAYERS = 24
"""Above this many layers scan is the default: the program, and its compile time, stop growing."""

SPLIT, WHOLE = ('batch', 'residual', 'embed'), ('batch', 'sequence', 'embed')
"""How activations lie between the branches, where each position is on its own, and inside them,
where heads or hidden units are split instead (Korthikanti et al. 2022, section 4.2.2)."""

STDDEV = 0.02
KERNEL_INIT = initializers.normal(STDDEV)
"""Of every matrix and table but those of `residual_init` (Radford et al. 2018, section 4.1)."""


@dataclass(frozen=True)
class Config:
    """Fields of every model made of these blocks.

    kv_heads: heads of keys and values, shared by groups of query heads; None for as many as heads.
    head_dim: None for width / heads.
    mlp: hidden width, of an expert too; None for 4 * width.
    experts: of a mixture in place of every MLP; None for no mixture. The rest of it, and the losses
        that the next fields weigh (their mean over layers), is in `nn.experts`.
    norm_position: 'pre' normalises what a branch reads, 'post' the sum (Xiong et al. 2020).
    bias: in projections and norms.
    query_key_norm: normalise queries and keys, as `norm` does, over the head size.
    attention_soft_cap: logits of attention become cap * tanh(logits / cap).
    dropout: of what each branch adds, and of embeddings.
    attention_dropout: of the weights of attention.
    stochastic_depth: the last block's rate of dropping a branch, from 0 at the first.
    attention_implementation: see `nn.attention.attend`.
    scan: compile one block and loop over stacked parameters; None: when layers > 24.
    remat: what of a block is computed anew in the backward pass rather than kept: 'none' of it; all
        but its products with kernels ('dots'), or but the 'projections' of attention, which are
        less; the same with these moved to the host's memory ('offload'); or all ('full').
    """

    layers: PositiveInt = 2
    width: PositiveInt = 128
    heads: PositiveInt = 2
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    mlp: PositiveInt | None = None
    experts: PositiveInt | None = None
    experts_per_token: PositiveInt = 2
    capacity_factor: Positive | None = 1.25
    load_balance: NonNegative = 0.01
    router_z: NonNegative = 0.001
    activation: Activation = 'gelu'
    norm: Literal['layer', 'rms'] = 'layer'
    norm_position: Literal['pre', 'post'] = 'pre'
    norm_epsilon: Positive = 1e-5
    bias: bool = True
    query_key_norm: bool = False
    attention_soft_cap: Positive | None = None
    dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    stochastic_depth: Rate = 0.0
    attention_implementation: Implementation | None = None
    scan: bool | None = None
    remat: Literal['none', 'dots', 'projections', 'offload', 'full'] = 'none'

    def __post_init__(self) -> None:
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f'width={self.width} is not divisible by heads={self.heads}; '
                'change one or set head_dim'
            )
        if self.heads % self.key_heads:
            raise ValueError(
                f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; change one'
            )
        if self.experts is not None and self.experts_per_token > self.experts:
            raise ValueError(
                f'experts_per_token={self.experts_per_token} is more than experts={self.experts}; '
                'change one'
            )

    @property
    def residual_blocks(self) -> int:
        return self.layers

    @property
    def is_scanned(self) -> bool:
        return self.layers > UNROLLED_LAYERS if self.scan is None else self.scan

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.width // self.heads

    @property
    def hidden(self) -> int:
        return self.mlp or 4 * self.width


def residual_init(config: Config, depth: float = 1.0) -> Initializer:
    """Of a branch's last matrix: L blocks add 2 L branches (Radford et al. 2019, section 2.3).

    depth: L over that of the base model, whose L it then is (`Multipliers.depth`).
    """
    return initializers.normal(STDDEV / math.sqrt(2 * config.layers / depth))


@dataclass(frozen=True)
class Sight:
    """What a position sees and knows of the others; see `nn.attention`."""

    causal: bool = False
    window: int | None = None
    stride: int | None = None
    frequencies: Frequencies | None = None


class Block(nn.Module):
    """x plus attention, plus an MLP: [B, T, D] -> [B, T, D]."""

    config: Config
    sight: Sight
    train: bool
    dtype: Any
    multipliers: Multipliers = STANDARD

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        drop_rate: jax.Array,
        segments: jax.Array | None,
        positions: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """Returns x and nothing, as nn.scan wants it. `drop_rate` is of stochastic depth."""
        config = self.config
        attention = Attention(
            config.heads,
            config.key_heads,
            config.head_size,
            **vars(self.sight),
            norm=config.norm if config.query_key_norm else None,
            norm_epsilon=config.norm_epsilon,
            soft_cap=config.attention_soft_cap,
            dropout=config.attention_dropout,
            use_bias=config.bias,
            kernel_init=KERNEL_INIT,
            out_init=self._out_init,
            multiplier=self.multipliers.attention,
            implementation=config.attention_implementation,
            dtype=self.dtype,
            name='attention',
        )

        def attend(y: jax.Array) -> jax.Array:
            return attention(y, segments, positions, self.train)

        x = self._add('attention_norm', attend, x, drop_rate)
        mlp = self._mlp if config.experts is None else partial(self._experts, segments)
        x = self._add('mlp_norm', mlp, x, drop_rate)
        return x, None

    @property
    def _out_init(self) -> Initializer:
        return residual_init(self.config, self.multipliers.depth)

    def _mlp(self, x: jax.Array) -> jax.Array:
        config = self.config
        hidden = Hidden(
            config.hidden,
            config.activation,
            use_bias=config.bias,
            kernel_init=KERNEL_INIT,
            dtype=self.dtype,
            name='mlp',
        )(x)
        return Dense(
            config.width,
            ('mlp', 'embed'),
            use_bias=config.bias,
            kernel_init=self._out_init,
            dtype=self.dtype,
            name='mlp_out',
        )(constrain(hidden, ('batch', 'sequence', 'mlp')))

    def _experts(self, segments: jax.Array | None, x: jax.Array) -> jax.Array:
        config = self.config
        assert config.experts is not None
        return Experts(
            config.experts,
            config.experts_per_token,
            config.hidden,
            config.activation,
            config.capacity_factor,
            balance=config.load_balance / config.layers,
            z=config.router_z / config.layers,
            use_bias=config.bias,
            kernel_init=KERNEL_INIT,
            out_init=self._out_init,
            dtype=self.dtype,
            name='experts',
        )(x, None if segments is None else segments != 0)

    def _add(
        self,
        norm_name: str,
        branch: Callable[[jax.Array], jax.Array],
        x: jax.Array,
        drop_rate: jax.Array,
    ) -> jax.Array:
        config = self.config
        norm = make_block_norm(config, norm_name, self.dtype)
        is_pre = config.norm_position == 'pre'
        y = branch(constrain(norm(x) if is_pre else x, WHOLE))
        y = Dropout(config.dropout)(constrain(y, SPLIT), self.train)
        if self.train and config.stochastic_depth:
            y = drop_samples(self.make_rng('dropout'), y, drop_rate)
        y = times(y, self.multipliers.branch)
        x = x + y if is_pre else norm(x + y)
        return constrain(x, SPLIT)


def make_block_norm(config: Config, name: str, dtype: Any) -> nn.Module:
    """The norm that the config names; a layer norm has a bias where the blocks have."""
    options = {'use_bias': config.bias} if config.norm == 'layer' else {}
    return make_norm(config.norm, epsilon=config.norm_epsilon, dtype=dtype, name=name, **options)


def run_blocks(
    x: jax.Array,
    segments: jax.Array | None,
    positions: jax.Array | None,
    config: Config,
    sight: Sight,
    *,
    train: bool,
    dtype: Any,
    multipliers: Multipliers = STANDARD,
) -> jax.Array:
    """All of the blocks and the final norm, inside the compact method of the module they belong to.

    Their parameters are block_0, block_1, ..., or stacked: blocks, with 'layers' for first axis.
    """
    scan = config.is_scanned
    block: Any = Block
    if config.remat != 'none':
        block = nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=not scan)
    options = (config, sight, train, dtype, multipliers)
    drop_rates = config.stochastic_depth * jnp.linspace(0, 1, config.layers)
    x = constrain(x.astype(dtype), SPLIT)
    if scan:
        stack = nn.scan(
            block,
            length=config.layers,
            in_axes=(0, nn.broadcast, nn.broadcast),
            variable_axes={'params': 0, 'cache': 0, 'losses': 0, 'diagnostics': 0},
            split_rngs={'params': True, 'dropout': True},
            metadata_params={nn.PARTITION_NAME: 'layers'},
        )
        x, _ = stack(*options, name='blocks')(x, drop_rates, segments, positions)
    else:
        for layer in range(config.layers):
            x, _ = block(*options, name=f'block_{layer}')(x, drop_rates[layer], segments, positions)
    if config.norm_position == 'pre':
        x = make_block_norm(config, 'final_norm', dtype)(x)
    return constrain(x, WHOLE)


def empty_cache(config: Config, batch: int, places: int, dtype: Any) -> Any:
    """The collection 'cache' of blocks that have read nothing, for up to `places` positions."""
    seen = Cache.empty(batch, places, config.key_heads, config.head_size, dtype)
    layer = {'attention': {'seen': seen}}
    if config.is_scanned:
        stacked = jax.tree.map(lambda x: jnp.tile(x, (config.layers,) + (1,) * x.ndim), layer)
        return {'blocks': stacked}
    return {f'block_{index}': layer for index in range(config.layers)}


HOST_MEMORY = 'pinned_host'

REMAT_POLICIES = {
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'projections': jax.checkpoint_policies.save_only_these_names(PROJECTION),
    'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PROJECTION],
        offload_src='device',
        offload_dst=HOST_MEMORY,
    ),
    'full': jax.checkpoint_policies.nothing_saveable,
}
