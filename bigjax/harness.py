"""A model under lm-evaluation-harness: its tasks ask, an `Author` answers.

    lm_eval.simple_evaluate(model=Harness(writing.of_run(workdir, None, ())), tasks=['lambada'])

Rows are sorted by length and padded to a power of two, so there is one program for each such length
and not one for each request.

Shapes: B rows, T tokens read, V vocabulary.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import schema
from bigjax.errors import ConfigError, DataError, EnvironmentProblem
from bigjax.generate import Sampling, bucket, generate
from bigjax.models.core import Model
from bigjax.sharding.mesh import num_batch_shards
from bigjax.writing import Author, Text

try:
    from lm_eval import utils
    from lm_eval.api.model import LM
except ImportError:
    raise EnvironmentProblem(
        "bigjax.harness needs the package lm_eval; pip install 'bigjax[eval]'"
    ) from None

MAX_NEW_TOKENS = 256
"""Where a request does not say."""
LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')


@partial(jax.jit, static_argnums=0)
def score(model: Model, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each token but the first in [B, T + 1]: its log-probability; and is it the likeliest."""
    logits = model.apply({'params': params}, tokens[:, :-1])[0].astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), logits.argmax(-1) == tokens[:, 1:]


class Harness(LM):
    """batch_size: rows at a time, rounded up to what the mesh divides.

    max_length: the most tokens read at once; no more than the model tells apart.
    """

    def __init__(
        self, author: Author, *, batch_size: int = 16, max_length: int = 2048, seed: int = 0
    ):
        super().__init__()
        special, shards = author.tokenizer.special, num_batch_shards(author.mesh)
        begin = [special[role] for role in ('bos', 'eos') if role in special]
        if author.model.empty_cache is None or not begin:
            raise ConfigError('expected a language model whose tokenizer has a bos or an eos')
        self.author, self.prefix, self.seed = author, begin[0], seed
        self.batch_size = -(-batch_size // shards) * shards
        self.max_length = min(max_length, author.model.context or max_length)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raises: DataError for a continuation longer than `max_length`."""
        return self._scores([self._split(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Each token once, in windows of which the first begins with the prefix token."""
        windows = [self._windows(request.args[0]) for request in requests]
        scores = iter(self._scores(list(itertools.chain.from_iterable(windows))))
        return [sum(next(scores)[0] for _ in parts) for parts in windows]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Requests of the same settings are written together."""
        answers = [''] * len(requests)
        kinds = [json.dumps(request.args[1], sort_keys=True) for request in requests]
        order = sorted(range(len(kinds)), key=lambda i: (kinds[i], -len(requests[i].args[0])))
        for _, group in itertools.groupby(order, key=kinds.__getitem__):
            for batch in self._batches(list(group)):
                texts = self._write([requests[row].args for row in batch], self.seed + batch[0])
                for row, text in zip(batch, texts, strict=True):
                    answers[row] = text.text
        return answers

    def _batches(self, rows: list[int]) -> Iterator[list[int]]:
        return (rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size))

    def _plain(self, text: str) -> list[int]:
        """Without special tokens around it."""
        return self.author.tokenizer.encode_batch([text])[0].tolist()

    def _split(self, context: str, continuation: str) -> tuple[list[int], int]:
        """Tokens of the whole, and how many are the continuation's; spaces between are its own."""
        encode, stripped = self.author.tokenizer.encode, context.rstrip()
        whole = (encode if stripped else self._plain)(context + continuation)
        before = len(encode(stripped)) if stripped else 0
        if not before and whole[:1] != [self.prefix]:
            whole = [self.prefix, *whole]
        return whole, len(whole) - max(before, 1)

    def _windows(self, text: str) -> list[tuple[list[int], int]]:
        """As `_split` has them."""
        windows = utils.get_rolling_token_windows(
            self._plain(text), self.prefix, self.max_length, context_len=1
        )
        return [([*read, predicted[-1]], len(predicted)) for read, predicted in windows]

    def _scores(self, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        longest = max((count for _, count in rows), default=0)
        if longest > self.max_length:
            raise DataError(
                f'continuation: expected at most {self.max_length} tokens, got {longest}'
            )
        answers = [(0.0, True)] * len(rows)
        for batch in self._batches(sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))):
            texts = [rows[row][0][-self.max_length - 1 :] for row in batch]
            length = bucket(len(texts[0]) - 1, self.max_length)
            padded = np.zeros((self.batch_size, length + 1), np.int32)
            for line, text in zip(padded, texts, strict=False):
                line[: len(text)] = text
            with jax.set_mesh(self.author.mesh):
                found = score(self.author.model, self.author.params, padded)
            for row, text, *parts in zip(batch, texts, *map(np.asarray, found), strict=False):
                logs, best = (
                    part[: len(text) - 1][len(text) - 1 - rows[row][1] :] for part in parts
                )
                answers[row] = float(logs.sum(dtype=np.float64)), bool(best.all())
        return answers

    def _write(self, asked: list[tuple[str, dict[str, Any]]], seed: int) -> list[Text]:
        """Prompts with the same settings."""
        author, settings = self.author, asked[0][1]
        limits = [settings[name] for name in LIMITS if settings.get(name) is not None]
        wanted = int(limits[0]) if limits else MAX_NEW_TOKENS
        room = max(self.max_length - wanted, self.max_length // 2)
        prompts = [(author.tokenizer.encode(text) or [self.prefix])[-room:] for text, _ in asked]
        until = settings.get('until') or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        texts = [Text(author.tokenizer, stops) for _ in asked]
        numbers = {'max_new_tokens': wanted, 'seed': seed, 'multiple_of': self.batch_size}
        variables = {'params': author.params}
        with jax.set_mesh(author.mesh):
            for new in generate(author.model, variables, prompts, sampling(settings), **numbers):
                for text, ids in zip(texts, new.tolist(), strict=True):
                    text.add(ids)
                if all(text.done for text in texts):
                    break
        return texts


def sampling(settings: dict[str, Any]) -> Sampling:
    """Of a request: greedy unless it asks for more. Raises: ConfigError."""
    temperature = settings.get('temperature', 1.0 if settings.get('do_sample') else 0.0)
    chosen = {'temperature': temperature if settings.get('do_sample', True) else 0.0}
    chosen |= {name: settings[name] for name in ('top_k', 'top_p', 'min_p') if settings.get(name)}
    return schema.build(Sampling, chosen, 'sampling')
