"""The FLOPs that a training step asks for: what MFU counts, whatever is computed a second time."""

from functools import partial
from typing import NamedTuple

import jax

from bigjax import components
from bigjax.models import flops, transformer
from bigjax.train.build import Run, batch_spec
from bigjax.train.step import eval_step, train_step


class ModelFlops(NamedTuple):
    """Of one step over all devices, and by which formula."""

    a_step: int
    formula: str


def model_flops(run: Run) -> ModelFlops:
    """PaLM's count where it applies: a Transformer with logits at each token, all of it trained,
    attending to the whole text (Chowdhery et al. 2022, appendix B); of a mixture of experts N are
    the matrices that a token meets.

    Elsewhere three times the products of the forward pass, as the backward pass has two for each of
    them; with frozen parameters, those of the training step, recomputation included.
    """
    size, context = run.config.train.batch_size, run.splits.spec.tokens
    batch = batch_spec(run.splits.spec, size)
    if not all(jax.tree.leaves(run.recipe.trained)):
        count = flops.count(partial(train_step, run.recipe), run.abstract, batch).flops
        return ModelFlops(count, 'products of the training step')
    config = _transformer(run)
    if config is not None and context is not None:
        axes, shared = run.recipe.model.axes['params'], config.experts_per_token
        counts = flops.parameter_counts(run.abstract.params, axes, config.tied, shared)
        n = counts.without_lookups if config.experts is None else counts.active
        width = config.heads * config.head_size
        count = flops.palm(n, config.layers, width, context, size * context)
        return ModelFlops(count, 'PaLM: (6 N + 12 L d T) a token')
    forward = partial(eval_step, run.recipe, {})
    count = flops.count(forward, run.abstract.eval_variables, batch).flops
    return ModelFlops(3 * count, '3 x products of the forward pass')


def _transformer(run: Run) -> transformer.Config | None:
    """The options of the model, if it is one that PaLM's formula speaks of."""
    if run.config.model.name != 'transformer':
        return None
    config = components.build_config(transformer, run.config.model.options, 'config.model')
    return config if config.head == 'tokens' and config.window is None else None
