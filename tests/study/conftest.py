"""Run folders as the trainer leaves them, without training: real data, invented learning."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from sklearn import datasets, metrics

from bigjax import schema
from bigjax.config import resolve
from bigjax.train.writers import Writer

RNG = np.random.default_rng(0)
START = 1_760_000_000.0


@pytest.fixture(scope='session')
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`make_run('digits')` is a run folder; see RUNS."""

    def make(kind: str) -> Path:
        workdir = tmp_path_factory.mktemp('runs') / f'{kind}_run'
        write_run(kind, workdir)
        return workdir

    return make


def write_run(kind: str, workdir: Path) -> None:
    config, evaluation, curves = RUNS[kind]()
    workdir.mkdir(parents=True)
    (workdir / 'config.json').write_text(json.dumps(schema.to_dict(resolve(config))))
    environment = {
        'command': ['bigjax', 'train', f'--config=configs/{kind}.py', f'--workdir=runs/{kind}'],
        'versions': {'python': '3.11.9', 'bigjax': '0.1.0', 'jax': '0.10.2', 'flax': '0.12.8'},
        'git_commit': '7f7a4ab',
        'devices': ['cpu'] * 8,
        'processes': 1,
    }
    (workdir / 'env.json').write_text(json.dumps(environment))
    _write_training(workdir, curves)
    (workdir / 'evaluation').mkdir()
    (workdir / 'evaluation' / 'test.json').write_text(json.dumps(evaluation))


def _write_training(workdir: Path, curves: Callable[[int, str], dict[str, float]]) -> None:
    """1120 steps, killed after 700 and resumed from 600."""
    clock = _Clock()
    with mock.patch('time.time', clock), Writer(workdir) as writer:
        writer.event('start', devices=8)
        clock.now += 3.2
        writer.event('compile', seconds=3.2)
        _steps(writer, clock, range(10, 710, 10), curves)
    clock.now += 600
    with mock.patch('time.time', clock), Writer(workdir, restored_step=600) as writer:
        clock.now += 2.0
        writer.event('start', 600, devices=8, seconds=2.0, restore_seconds=1.1)
        _steps(writer, clock, range(610, 1130, 10), curves)
        writer.event('stop', 1120, reason='done')


class _Clock:
    now = START

    def __call__(self) -> float:
        return self.now


def _steps(
    writer: Writer, clock: _Clock, steps: range, curves: Callable[[int, str], dict[str, float]]
) -> None:
    for step in steps:
        clock.now += 0.28
        writer.metrics(
            step,
            {
                'train/learning_rate': 1e-3
                * min(step / 100, 0.5 + 0.5 * math.cos(step / 1120 * 3.14)),
                **{f'train/{name}': value for name, value in curves(step, 'train').items()},
                'perf/examples_per_second': 4500 + 200 * RNG.normal(),
                'perf/step_seconds': 0.028,
                'perf/data_wait_seconds': 0.007,
            },
        )
        if step % 100 == 0:
            clock.now += 0.4
            writer.event('evaluate', step, split='val', seconds=0.4)
            writer.metrics(step, {f'val/{name}': v for name, v in curves(step, 'val').items()})
            writer.event('steps', step, seconds=2.8, data_wait_seconds=0.7)
            clock.now += 0.1
            writer.event('save', step, seconds=0.1)


def _falling(top: float, bottom: float, pace: float) -> Callable[[int, str], float]:
    def value(step: int, split: str) -> float:
        noise = 1 + (0.15 if split == 'train' else 0.03) * RNG.normal()
        floor = bottom * (1 if split == 'train' else 1.6)
        return (floor + (top - floor) * math.exp(-step / pace)) * noise

    return value


def _classification_curves(step: int, split: str) -> dict[str, float]:
    loss = _falling(2.3, 0.02, 90)(step, split)
    accuracy = 1 - 0.9 * math.exp(-step / 60) - (0.004 if split == 'train' else 0.014)
    return {'loss': loss, 'accuracy': accuracy}


def _digits() -> tuple[dict[str, Any], dict[str, Any], Callable]:
    digits = datasets.load_digits()
    targets = digits.target[:360]
    predictions = targets.copy()
    wrong = np.arange(0, 360, 30)
    predictions[wrong] = RNG.integers(0, 10, len(wrong))
    chosen = np.concatenate([wrong, np.arange(1, 25)])
    names = [*map(str, range(9)), '<script>alert("nine")</script>']
    evaluation = {
        'step': 1120,
        'metrics': {'loss': 0.0712, 'accuracy': metrics.accuracy_score(targets, predictions)},
        'curves': {
            'confusion_matrix': metrics.confusion_matrix(targets, predictions).tolist(),
            'f1_per_class': metrics.f1_score(targets, predictions, average=None).tolist(),
        },
        'class_names': names,
        'samples': [
            {
                'input': {'kind': 'image', 'pixels': _pixels(digits.images[index])},
                'target': names[targets[index]],
                'prediction': names[predictions[index]],
                'score': float(RNG.uniform(0.5, 1)),
            }
            for index in chosen
        ],
    }
    config = {
        'model': {'name': 'cnn', 'widths': [32, 64, 64], 'dropout': 0.25},
        'task': 'classification',
        'data': {'name': 'digits', 'augment': {'crop': {'padding': 1}}},
        'optimizer': {
            'name': 'adamw',
            'learning_rate': 1e-3,
            'schedule': {'name': 'cosine', 'warmup': '5%'},
        },
        'train': {'epochs': 40, 'batch_size': 64},
    }
    return config, evaluation, _classification_curves


def _pixels(image: np.ndarray) -> list:
    return (image[..., None] * 255 / 16).astype(np.uint8).tolist()


def _binary() -> tuple[dict[str, Any], dict[str, Any], Callable]:
    targets = RNG.integers(0, 2, 200)
    scores = np.clip(0.5 + 0.25 * (2 * targets - 1) + 0.25 * RNG.normal(size=200), 0, 1)
    fpr, tpr, _ = metrics.roc_curve(targets, scores, drop_intermediate=False)
    calls = (scores > 0.5).astype(int)
    names = ['malignant', 'benign']
    features = datasets.load_breast_cancer()
    evaluation = {
        'step': 1120,
        'metrics': {
            'loss': 0.21,
            'accuracy': metrics.accuracy_score(targets, calls),
            'auc': metrics.roc_auc_score(targets, scores),
            'average_precision': metrics.average_precision_score(targets, scores),
        },
        'curves': {
            'confusion_matrix': metrics.confusion_matrix(targets, calls).tolist(),
            'roc_curve': {'fpr': fpr.tolist(), 'tpr': tpr.tolist()},
        },
        'class_names': names,
        'samples': [
            {
                'input': {
                    'kind': 'row',
                    'values': dict(
                        zip(features.feature_names, features.data[index].tolist(), strict=True)
                    ),
                },
                'target': names[targets[index]],
                'prediction': names[calls[index]],
                'score': float(max(scores[index], 1 - scores[index])),
            }
            for index in range(24)
        ],
    }
    config = {
        'model': {'name': 'mlp', 'widths': [128, 64]},
        'task': {'name': 'classification', 'kind': 'binary'},
        'data': 'breast_cancer',
        'eval': {'metrics': ['auc', 'accuracy']},
        'train': {'steps': 1120},
    }
    return config, evaluation, _classification_curves


def _regression() -> tuple[dict[str, Any], dict[str, Any], Callable]:
    actual = datasets.load_diabetes().target[:150]
    predicted = 150 + 0.6 * (actual - 150) + 40 * RNG.normal(size=150)
    evaluation = {
        'step': 1120,
        'metrics': {'loss': 2900.5, 'r2': metrics.r2_score(actual, predicted)},
        'curves': {'predicted': predicted.tolist(), 'actual': actual.tolist()},
        'class_names': [],
        'samples': [
            {
                'input': {'kind': 'row', 'values': {'age': 0.03, 'bmi': -0.01}},
                'target': f'{actual[index]:.4g}',
                'prediction': f'{predicted[index]:.4g}',
            }
            for index in range(9)
        ],
    }
    config = {'model': 'mlp', 'task': 'regression', 'data': 'diabetes', 'train': {'steps': 1120}}
    loss = _falling(29000, 2400, 80)
    return config, evaluation, lambda step, split: {'loss': loss(step, split)}


def _text() -> tuple[dict[str, Any], dict[str, Any], Callable]:
    evaluation = {
        'step': 1120,
        'metrics': {'loss': 1.31, 'perplexity': math.exp(1.31), 'bits_per_byte': 1.89},
        'curves': {},
        'class_names': [],
        'samples': [
            {
                'input': {'kind': 'text', 'text': 'def __init__(self'},
                'prediction': ', name):\n        self.name = name\n\n    def <b>get</b>(self):\n',
            },
            {'input': {'kind': 'text', 'text': 'import '}, 'prediction': 'os\nimport sys\n'},
        ],
    }
    config = {
        'model': 'transformer',
        'task': 'language_model',
        'data': 'text',
        'train': {'steps': 1},
    }
    loss = _falling(5.5, 1.2, 250)

    def curves(step: int, split: str) -> dict[str, float]:
        nats = loss(step, split)
        return {'loss': nats, 'bits_per_byte': nats / math.log(2)}

    return config, evaluation, curves


RUNS = {'digits': _digits, 'binary': _binary, 'regression': _regression, 'text': _text}
