"""The FLOPs that a training step asks for: what MFU counts, whatever is computed a second time."""

from functools import partial
from typing import NamedTuple

import jax

from bigjax import components
from bigjax.models import flops, transformer
from bigjax.sharding.rules import PARAMETER_RULES
from bigjax.train.build import Run, batch_spec
from bigjax.train.step import eval_step, train_step


class ModelFlops(NamedTuple):
    """Of one step over all devices, and by which formula."""

    a_step: int
    formula: str


def model_flops(run: Run) -> ModelFlops:
    """PaLM's count where it applies: a dense Transformer with logits at each token, all of it
    trained, attending to the whole text (Chowdhery et al. 2022, appendix B).

    Elsewhere three times the products of the forward pass, as the backward pass has two for each of
    them; with frozen parameters, those of the training step, recomputation included.
    """
    batch = batch_spec(run.splits.spec, run.config.train.batch_size)
    if not all(jax.tree.leaves(run.recipe.trained)):
        count = flops.count(partial(train_step, run.recipe), run.abstract, batch).flops
        return ModelFlops(count, 'products of the training step')
    if (config := _dense_transformer(run)) is not None:
        axes = run.recipe.model.axes['params']
        counts = flops.parameter_counts(run.abstract.params, axes, config.tied)
        context = run.splits.spec.tokens
        assert context is not None
        count = flops.palm(
            counts.without_lookups,
            config.layers,
            config.heads * config.head_size,
            context,
            run.config.train.batch_size * context,
        )
        return ModelFlops(count, 'PaLM: (6 N + 12 L d T) a token')
    forward = partial(eval_step, run.recipe, {})
    count = flops.count(forward, run.abstract.eval_variables, batch).flops
    return ModelFlops(3 * count, '3 x products of the forward pass')


def _dense_transformer(run: Run) -> transformer.Config | None:
    """What PaLM's formula asks of the model, if it is one of those."""
    if run.config.model.name != 'transformer' or run.splits.spec.tokens is None:
        return None
    config = components.build_config(transformer, run.config.model.options, 'config.model')
    names = {name for axes in jax.tree.leaves(run.recipe.model.axes['params']) for name in axes}
    sparse = any('expert' in PARAMETER_RULES.get(name, ()) for name in names)
    return None if sparse or config.head != 'tokens' or config.window is not None else config
