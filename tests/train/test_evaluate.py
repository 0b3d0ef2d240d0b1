import json

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from bigjax.data.core import ArraySource, DataSpec
from bigjax.train import evaluate, outcome
from bigjax.train.build import build
from tests.train.tiny import blobs, tiny_config


@pytest.mark.parametrize('rows', [16, 21, 47])
@pytest.mark.parametrize('batch_size', [8, 16])
def test_every_example_counts_exactly_once(rows, batch_size):
    splits = blobs(rows=47)
    arrays = {key: value[:rows] for key, value in splits.sources['train'].arrays.items()}
    run = build(
        tiny_config(**{'eval.batch_size': batch_size, 'eval.metrics': ('f1_macro', 'log_loss')}),
        splits,
    )
    state = run.init()
    values = outcome.evaluator(run)(state.eval_variables, ArraySource(arrays))
    logits = run.recipe.model.apply(state.eval_variables, arrays['inputs'], train=False)[0]
    chances = np.asarray(jax.nn.softmax(logits), np.float64)
    targets = arrays['targets']
    chances /= chances.sum(-1, keepdims=True)
    assert values['log_loss'] == pytest.approx(
        log_loss(targets, chances, labels=range(4)), rel=1e-5
    )
    assert values['loss'] == pytest.approx(values['log_loss'], rel=1e-6)
    f1 = f1_score(targets, chances.argmax(-1), average='macro', labels=range(4), zero_division=0)
    assert values['f1_macro'] == pytest.approx(f1)


def test_numbers_and_curves_part_ways():
    values = {'loss': 0.5, 'confusion_matrix': np.eye(2)}
    assert evaluate.scalars(values, 'val') == {'val/loss': 0.5}
    assert evaluate.curves(values) == {'confusion_matrix': [[1.0, 0.0], [0.0, 1.0]]}


def test_samples_are_readable():
    spec = DataSpec(None, None, num_classes=2, class_names=('no', 'yes'), feature_names=('a', 'b'))
    rows = {'inputs': np.array([[1.0, 2.0]]), 'targets': np.array([1])}
    (sample,) = evaluate.samples('binary', spec, rows, np.array([[0.9, 0.1]]), None)
    assert sample == {
        'input': {'kind': 'row', 'values': {'a': 1.0, 'b': 2.0}},
        'target': 'yes',
        'prediction': 'no',
        'score': 0.9,
    }
    image = {'inputs': np.full((1, 2, 2, 1), 255, np.uint8), 'targets': np.array([[0.0, 1.0]])}
    (sample,) = evaluate.samples('multilabel', spec, image, np.array([[0.9, 0.8]]), None)
    assert sample['input'] == {'kind': 'image', 'pixels': [[[255], [255]], [[255], [255]]]}
    assert (sample['target'], sample['prediction']) == ('yes', 'no, yes')
    number = {'inputs': np.ones((1, 2)), 'targets': np.array([1.23456])}
    (sample,) = evaluate.samples('regression', spec, number, np.array([[2.0]]), None)
    assert (sample['target'], sample['prediction']) == ('1.235', '2')
    (sample,) = evaluate.samples('binary', spec, rows, np.array([[0.9, 0.1]]), lambda row: 'words')
    assert sample['input'] == {'kind': 'text', 'text': 'words'}


def test_the_report_gets_strict_json_curves():
    roc = np.array([[0.0, 1.0], [0.0, 1.0], [np.inf, 0.5]])
    bins = np.array([[0.1, np.nan], [0.2, np.nan], [5, 0]])
    plain = evaluate.curves({'roc_curve': roc, 'calibration_curve': bins})
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        'roc_curve': {'fpr': [0, 1], 'tpr': [0, 1]},
        'calibration_curve': {'confidence': [0.1, 0], 'accuracy': [0.2, 0], 'count': [5, 0]},
    }


def test_the_worst_mistakes_are_shown_first(tmp_path):
    run = build(tiny_config(), blobs())
    outcome.report_split(run, run.init().eval_variables, 'test', 0, tmp_path)
    shown = json.loads((tmp_path / 'evaluation' / 'test.json').read_text())['samples']
    wrong = [sample['prediction'] != sample['target'] for sample in shown]
    scores = [sample['score'] for sample, miss in zip(shown, wrong, strict=True) if miss]
    assert len(shown) == 24
    assert sorted(wrong, reverse=True) == wrong
    assert 0 < len(scores) <= 12
    assert sorted(scores, reverse=True) == scores
