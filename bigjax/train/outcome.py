"""What came of a run: full evaluation of a split, its curves and sample predictions, as files."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from bigjax import metrics
from bigjax.config import Config
from bigjax.data import batches
from bigjax.data.core import Source
from bigjax.errors import DataError
from bigjax.generate import MIN_CONTEXT, Sampling, generate
from bigjax.sharding import hosts
from bigjax.sharding.mesh import num_batch_shards, process_rows, replicated
from bigjax.train import checkpoint, evaluate, folder
from bigjax.train.build import Run, build, metric_groups, metric_names
from bigjax.train.progress import final_table
from bigjax.train.step import eval_step, predict_step
from bigjax.train.writers import replace_file

log = logging.getLogger(__name__)

FOLDER = 'evaluation'
NUM_SAMPLES = 24
NUM_TEXTS = 3
MAX_PREDICTED = 2048
MAX_CLASSES_SHOWN = 100

CURVES = {
    'binary': ('confusion_matrix', 'roc_curve', 'calibration_curve'),
    'multiclass': (
        'confusion_matrix',
        'precision_per_class',
        'recall_per_class',
        'f1_per_class',
        'calibration_curve',
    ),
    'multilabel': ('precision_per_class', 'recall_per_class', 'f1_per_class'),
}

Evaluate = Callable[..., Any]


def evaluator(run: Run, groups: dict[str, metrics.MetricGroup] | None = None) -> Evaluate:
    """A function (variables, source, stop=never) -> loss and metrics, as `evaluate.evaluate` has
    them; it compiles once for all splits."""
    groups = metric_groups(run.config, run.recipe.task) if groups is None else groups
    step = jax.jit(partial(eval_step, run.recipe, groups), out_shardings=replicated(run.mesh))

    def evaluate_source(variables: Any, source: Source, *stop: Callable[[], object]) -> Any:
        return evaluate.evaluate(
            step, groups, variables, source, run.eval_batch_size, run.batch_sharding, *stop
        )

    return evaluate_source


def report_split(
    run: Run, variables: Any, split: str, step: int, workdir: Path
) -> dict[str, float]:
    """Evaluates `split` with every curve, writes `evaluation/<split>.json`, returns the numbers."""
    task, spec, source = run.recipe.task, run.splits.spec, run.splits.sources[split]
    names = dict.fromkeys(metric_names(run.config, task))
    if (spec.num_classes or 0) <= MAX_CLASSES_SHOWN:
        names |= dict.fromkeys(CURVES.get(task.kind, ()))
    values = evaluator(run, task.metrics(tuple(names)))(variables, source)
    outcome: dict[str, Any] = {
        'step': step,
        'kind': task.kind,
        'metrics': {name: value for name, value in values.items() if np.ndim(value) == 0},
        'curves': evaluate.curves(values),
        'class_names': list(spec.class_names),
        'samples': _samples(run, variables, source),
    }
    if task.kind == 'regression':
        outcome['curves'] |= _predicted_and_actual(run, variables, source)
    if task.kind == 'language_model' and outcome['samples']:
        sample = outcome['samples'][0]
        log.info('%s, then written on: %s', sample['input']['text'], sample['prediction'])
    if hosts.leads():
        place = workdir / FOLDER
        place.mkdir(exist_ok=True)
        replace_file(place / f'{split}.json', json.dumps(outcome).encode())
    return evaluate.scalars(values, split)


def _samples(run: Run, variables: Any, source: Source) -> list[dict[str, Any]]:
    """The most confident mistakes, then as many of the first rows as there is room for."""
    task, decode, spec = run.recipe.task, run.splits.decode, run.splits.spec
    if task.corrupt is not None:
        return []  # what it hides is not to be written on
    if task.kind == 'language_model':
        return _continuations(run, variables, source)
    predictions = _predictions(run, variables, source)
    chosen = np.arange(len(predictions))
    if task.kind in ('binary', 'multiclass'):
        wrong = predictions.argmax(-1) != evaluate.class_ids(source[chosen]['targets'])
        confidence = predictions.max(-1)
        mistakes = np.flatnonzero(wrong)[np.argsort(-confidence[wrong], kind='stable')]
        chosen = np.append(mistakes[: NUM_SAMPLES // 2], np.flatnonzero(~wrong))
    chosen = chosen[:NUM_SAMPLES]
    return evaluate.samples(task.kind, spec, source[chosen], predictions[chosen], decode)


def _continuations(run: Run, variables: Any, source: Source) -> list[dict[str, Any]]:
    """The first halves of a few rows as prompts, and what the model makes of them; none where its
    context is too short to write in."""
    context = run.recipe.model.context
    if context is not None and context < MIN_CONTEXT:
        return []
    inputs = source[np.arange(min(NUM_TEXTS, len(source)))]['inputs']
    rows = np.asarray(inputs['tokens'] if isinstance(inputs, Mapping) else inputs)
    prompts, length = rows[:, : max(1, rows.shape[1] // 2)], rows.shape[1]
    pieces = generate(
        run.recipe.model,
        variables,
        prompts.tolist(),
        Sampling(temperature=0.8),
        max_new_tokens=length,
        multiple_of=num_batch_shards(run.mesh),
    )
    tokenizer = run.splits.tokenizer
    show = tokenizer.decode if tokenizer else lambda ids: ' '.join(map(str, ids))
    return [
        {'input': {'kind': 'text', 'text': show(prompt)}, 'prediction': show(new)}
        for prompt, new in zip(prompts, np.concatenate(list(pieces), axis=1), strict=True)
    ]


def _predicted_and_actual(run: Run, variables: Any, source: Source) -> dict[str, Any]:
    predicted = _predictions(run, variables, source)
    actual = source[np.arange(len(predicted))]['targets']
    return {'predicted': np.ravel(predicted).tolist(), 'actual': np.ravel(actual).tolist()}


def _predictions(run: Run, variables: Any, source: Source) -> np.ndarray:
    """What the task says of the first rows, at most MAX_PREDICTED, whole on every process."""
    size, sharding = run.eval_batch_size, run.batch_sharding
    rows = process_rows(sharding, size)
    count = min(len(source), MAX_PREDICTED)
    predict = jax.jit(partial(predict_step, run.recipe), out_shardings=replicated(run.mesh))
    found = []
    for index in range(-(-count // size)):
        batch = batches.eval_batch(source, index, size, rows)
        found.append(np.asarray(predict(variables, batches.to_device(batch, sharding, size))))
    return np.concatenate(found)[:count]


def evaluate_run(
    config: Config, workdir: Path, split: str, which: str | None, console: Console
) -> dict[str, float]:
    """Evaluates a split by a checkpoint of the run in `workdir`, under its config or one like it.

    which: 'latest', 'best' or a step; by default the best where the run kept one.
    Raises: ConfigError, DataError or CheckpointError.
    """
    run = build(config)
    folder.claim_tokenizer(workdir, run.splits.tokenizer)
    if split not in run.splits.sources:
        raise DataError(f'this run has no {split} split; there are {", ".join(run.splits.sources)}')
    with (
        jax.set_mesh(run.mesh),
        checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints,
    ):
        which = which or ('best' if config.checkpoint.best else 'latest')
        step = checkpoint.pick(checkpoints, which, config.checkpoint.best)
        variables = checkpoint.restore_variables(checkpoints, step, run.abstract)
        results = report_split(run, variables, split, step, workdir)
    final_table(results, console)
    return results
