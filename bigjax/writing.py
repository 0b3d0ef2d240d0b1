"""`bigjax generate`: prompts in, text out, as it is written."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bigjax import interop, schema
from bigjax.config import MeshConfig
from bigjax.data.tokenizers import Tokenizer
from bigjax.errors import ConfigError, DataError
from bigjax.generate import Sampling, generate
from bigjax.models import transformer
from bigjax.models.core import Model
from bigjax.sharding.mesh import make_mesh, num_batch_shards
from bigjax.train import trained

RULE = '-' * 16
UNFINISHED = '\ufffd'
"""What a character shows as before all of its bytes are written."""


class Author(NamedTuple):
    """A model that writes, wherever it comes from."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh


def of_run(workdir: Path, checkpoint: str | None, overrides: Sequence[tuple[str, str]]) -> Author:
    """The language model of a run. Raises: ConfigError, CheckpointError."""
    loaded = trained.load(workdir, checkpoint, overrides)
    return Author(loaded.model, loaded.params, loaded.tokenizer, loaded.mesh)


def of_weights(path: Path) -> Author:
    """A hub folder or GGUF file. Raises: ConfigError, DataError, CheckpointError."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        module, params, tokenizer = interop.load(path)
    row = jax.ShapeDtypeStruct((1, 1), np.int32)
    return Author(transformer.as_model(module, row), params, tokenizer, mesh)


def read_prompt(file: Path) -> str:
    """The whole of a text file. Raises: DataError."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'--prompt_file: cannot read {file}: {error}') from error


def write(
    author: Author,
    prompts: Sequence[str],
    sampling: Mapping[str, Any],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 200,
    stops: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Prints `num_samples` texts a prompt, the first one while it is written; returns what is new.

    A text ends with the tokenizer's end of text, before one of `stops`, or when it is long enough.
    Raises: ConfigError.
    """
    numbers = {'num_samples': num_samples, 'max_new_tokens': max_new_tokens, 'seed': seed + 1}
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f'--{name}: expected a positive number, got {number}')
    if author.model.empty_cache is None:
        raise ConfigError('this model does not predict what comes next; expected a language model')
    settings = schema.build(Sampling, sampling, 'sampling')
    prompts = [prompt for prompt in prompts or [''] for _ in range(num_samples)]
    begin = [id for role, id in author.tokenizer.special.items() if role == 'bos']
    ids = [author.tokenizer.encode(prompt) or begin for prompt in prompts]
    if not all(ids):
        raise ConfigError('--prompt: this tokenizer has no token to begin with; give a prompt')
    texts = [Text(author.tokenizer, stops) for _ in prompts]
    print(prompts[0], end='', flush=True)
    with jax.set_mesh(author.mesh):
        for tokens in generate(
            author.model,
            {'params': author.params},
            ids,
            settings,
            max_new_tokens=max_new_tokens,
            seed=seed,
            multiple_of=num_batch_shards(author.mesh),
        ):
            for text, new in zip(texts, tokens.tolist(), strict=True):
                text.add(new)
            sys.stdout.write(texts[0].unseen())
            sys.stdout.flush()
            if all(text.done for text in texts):
                break
    print(texts[0].rest())
    for prompt, text in zip(prompts[1:], texts[1:], strict=True):
        print(f'{RULE}\n{prompt}{text.text}')
    return [text.text for text in texts]


class Text:
    """One text, as its tokens come in."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self.tokenizer = tokenizer
        self.stops = stops
        self.ids: list[int] = []
        self.done = False
        self.text = ''
        self.shown = 0

    def add(self, ids: list[int]) -> None:
        """More tokens, of which those after an end are not wanted."""
        if self.done:
            return
        end = self.tokenizer.special.get('eos')
        if end in ids:
            ids, self.done = ids[: ids.index(end)], True
        self.ids += ids
        self.text = self.tokenizer.decode(self.ids)
        found = [at for at in map(self.text.find, self.stops) if at >= 0]
        if found:
            self.text, self.done = self.text[: min(found)], True

    def unseen(self) -> str:
        """What can be shown now: no unfinished character, nothing that may begin a stop."""
        held = max((len(stop) - 1 for stop in self.stops), default=0)
        ready = self.text[: len(self.text) - held].rstrip(UNFINISHED)
        new, self.shown = ready[self.shown :], max(self.shown, len(ready))
        return new

    def rest(self) -> str:
        """What was held back."""
        new, self.shown = self.text[self.shown :], len(self.text)
        return new
