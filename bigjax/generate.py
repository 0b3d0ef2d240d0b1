"""Writing on with a language model: prompts are read at once, then a token at a time.

The programs compiled are few: one for each bucket of prompt lengths and of room for the text, none
a token. A row's random numbers depend on the seed, the row and the position alone, so a text does
not depend on the batch it is written in.

Shapes: B rows, P length of the padded prompts, V vocabulary, N tokens written at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import ConfigError
from bigjax.models.core import Model
from bigjax.schema import Fraction, NonNegative, PositiveInt

CHUNK = 8
"""Tokens written between two looks of the host."""
MIN_CONTEXT = 2 * CHUNK
"""Of a model whose context is bounded: half of it is kept when it is full."""
SMALLEST_BUCKET = 32


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits, in this order.

    temperature: logits are divided by it; 0 takes the likeliest token.
    top_k: of the k likeliest. top_p: of the fewest that together have this probability (Holtzman et
    al. 2020, section 3.1). min_p: of those at least this fraction as likely as the likeliest
    (Nguyen et al. 2024, section 3).
    """

    temperature: NonNegative = 1.0
    top_k: PositiveInt | None = None
    top_p: Fraction = 1.0
    min_p: Fraction = 0.0

    @property
    def filters(self) -> bool:
        return self.top_k is not None or self.top_p < 1 or self.min_p > 0


class Reader(NamedTuple):
    """A model that reads tokens bit by bit.

    empty: (rows, places) -> a memory of nothing.
    read: (variables, memory, tokens [B, T], positions [B, T], lengths [B]) -> logits [B, V] after
        each row's last token, and the new memory. The first `lengths` tokens of a row are real.
    context: the most positions that it can tell apart; None for any number.
    """

    empty: Callable[[int, int], Any]
    read: Callable[..., tuple[jax.Array, Any]]
    context: int | None


@cache  # a reader is an argument of compiled functions, which know it by identity
def reader(model: Model) -> Reader:
    """With the model's own cache where it has one, else by reading everything again."""
    return _remembering(model) if model.empty_cache is not None else _rereading(model)


def _remembering(model: Model) -> Reader:
    def read(
        variables: Any, memory: Any, tokens: jax.Array, positions: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, Any]:
        inputs = {'tokens': tokens, 'positions': positions}
        if tokens.shape[1] > 1:
            real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
            inputs |= {'mask': real, 'at': lengths - 1}
        logits, changed = model.apply({**variables, 'cache': memory}, inputs)
        return logits[:, -1], changed['cache']

    assert model.empty_cache is not None
    return Reader(model.empty_cache, read, model.context)


def _rereading(model: Model) -> Reader:
    """Its memory is the tokens so far."""

    def empty(rows: int, places: int) -> jax.Array:
        return jnp.zeros((rows, places), jnp.int32)

    def read(
        variables: Any, memory: Any, tokens: jax.Array, positions: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, Any]:
        rows = jnp.arange(tokens.shape[0])
        memory = memory.at[rows[:, None], positions].set(tokens, mode='drop')
        logits, _ = model.apply(variables, memory)
        return logits[rows, positions[:, 0] + lengths - 1], memory

    return Reader(empty, read, model.context)


class Pen(NamedTuple):
    """Where the writing stands: memory, the next token's logits [B, V] and its position [B]."""

    memory: Any
    logits: jax.Array
    positions: jax.Array


@partial(jax.jit, static_argnums=(0, 4))
def prefill(
    reader: Reader, variables: Any, prompts: jax.Array, lengths: jax.Array, places: int
) -> Pen:
    """Reads prompts [B, P] of `lengths` [B]; there is room for `places` tokens altogether."""
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1])[None], prompts.shape)
    memory = reader.empty(prompts.shape[0], places)
    logits, memory = reader.read(variables, memory, prompts, positions, lengths)
    return Pen(memory, logits, lengths)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def write(
    reader: Reader, mode: str, variables: Any, pen: Pen, rngs: jax.Array, sampling: dict[str, Any]
) -> tuple[jax.Array, Pen]:
    """CHUNK more tokens [B, N]; `rngs` [B] are the rows' own keys."""

    def one(pen: Pen, _: None) -> tuple[Pen, jax.Array]:
        keys = jax.vmap(jax.random.fold_in)(rngs, pen.positions)
        tokens = draw(mode, pen.logits, keys, sampling)
        ones = jnp.ones_like(pen.positions)
        logits, memory = reader.read(
            variables, pen.memory, tokens[:, None], pen.positions[:, None], ones
        )
        return Pen(memory, logits, pen.positions + 1), tokens

    pen, tokens = jax.lax.scan(one, pen, length=CHUNK)
    return tokens.T, pen


def draw(mode: str, logits: jax.Array, rngs: jax.Array, sampling: dict[str, Any]) -> jax.Array:
    """One token [B] a row, from logits [B, V]; mode: 'greedy', 'plain' or 'filtered'."""
    if mode == 'greedy':
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / sampling['temperature']
    if mode == 'filtered':
        logits = filtered(logits, sampling['top_k'], sampling['top_p'], sampling['min_p'])
    return jax.vmap(jax.random.categorical)(rngs, logits).astype(jnp.int32)


def filtered(logits: jax.Array, top_k: Any, top_p: Any, min_p: Any) -> jax.Array:
    """Logits [B, V] with -inf for the tokens that the filters leave out. All may be traced."""
    ordered = -jnp.sort(-logits, axis=-1)
    ordered = jnp.where(jnp.arange(logits.shape[-1])[None] < top_k, ordered, -jnp.inf)
    chances = jax.nn.softmax(ordered)
    before = jnp.cumsum(chances, axis=-1) - chances
    kept = (before < top_p) & (chances >= min_p * chances[:, :1]) & (ordered > -jnp.inf)
    kept = kept.at[:, 0].set(True)
    lowest = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def generate(
    model: Model,
    variables: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int = 0,
    multiple_of: int = 1,
) -> Iterator[np.ndarray]:
    """New tokens of all prompts, some at a time: [B, at most CHUNK], until there are enough.

    prompts: token ids, at least one each; lengths may differ.
    multiple_of: rows are added, and not shown, to make their number a multiple of it (of the
        devices over which a mesh spreads them).

    A model with a bounded context that reaches its end goes on from the later half of it.
    Raises: ConfigError where the context is too short for that.
    """
    source = reader(model)
    if source.context is not None and source.context < MIN_CONTEXT:
        raise ConfigError(
            f'config.model.max_length: expected at least {MIN_CONTEXT} to write on, got '
            f'{source.context}; train with a longer context'
        )
    rows = -(-len(prompts) // multiple_of) * multiple_of
    texts = [list(prompts[min(row, len(prompts) - 1)]) for row in range(rows)]
    mode = 'filtered' if sampling.filters else 'plain'
    mode = 'greedy' if sampling.temperature == 0 else mode
    numbers = {name: value for name, value in vars(sampling).items() if value is not None}
    settings = {'top_k': np.iinfo(np.int32).max} | numbers
    rngs = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(rows))
    written, pen, room = 0, None, 0
    while written < max_new_tokens:
        if pen is None or room < CHUNK:
            pen, room = _begin(source, variables, texts, max_new_tokens - written)
        tokens, pen = write(source, mode, variables, pen, rngs, settings)
        new = np.asarray(tokens)
        for text, more in zip(texts, new.tolist(), strict=True):
            text += more
        yield new[: len(prompts), : max_new_tokens - written]
        written, room = written + CHUNK, room - CHUNK


def _begin(source: Reader, variables: Any, texts: list[list[int]], wanted: int) -> tuple[Pen, int]:
    """Reads the texts, or their ends where the context is bounded; and how many more fit behind."""
    longest = max(map(len, texts))
    if source.context is not None and longest + min(wanted, CHUNK) > source.context:
        texts = [text[-(source.context // 2) :] for text in texts]
        longest = max(map(len, texts))
    places = bucket(longest + wanted + CHUNK, source.context)
    lengths = np.array([len(text) for text in texts], np.int32)
    prompts = np.zeros((len(texts), bucket(longest, places)), np.int32)
    for row, text in zip(prompts, texts, strict=True):
        row[: len(text)] = text
    return prefill(source, variables, prompts, lengths, places), places - longest


def bucket(length: int, most: int | None) -> int:
    """The power of two that holds `length`, but not more than `most`."""
    size = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return size if most is None else min(size, most)
