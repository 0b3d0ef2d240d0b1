import json

import jax
import numpy as np
import pytest

from bigjax import trees
from bigjax.errors import CheckpointError, ConfigError, Diverged, Preempted
from bigjax.train import checkpoint
from bigjax.train.build import build
from bigjax.train.loop import Session, train
from bigjax.train.writers import read_events, read_metrics
from tests.faults.runs import numbers, stop_at
from tests.train.tiny import tiny_config


def test_a_whole_run(tmp_path):
    results = train(tiny_config(**{'model.dropout': 0.1}), tmp_path)
    rows = read_metrics(tmp_path)
    assert [row['step'] for row in rows if 'train/loss' in row] == [1, 2, 3, 4, 5, 6]
    assert [row['step'] for row in rows if 'val/loss' in row] == [3, 6]
    assert {'test/accuracy', 'test/loss', 'val/loss'} <= results.keys()
    with checkpoint.open_checkpoints(tmp_path, tiny_config().checkpoint) as checkpoints:
        assert checkpoint.steps(checkpoints) == [3, 6]
    outcome = json.loads((tmp_path / 'evaluation' / 'test.json').read_text())
    assert np.sum(outcome['curves']['confusion_matrix']) == 18
    assert len(outcome['samples']) == 18
    for name in ('config.json', 'env.json', 'metrics.jsonl', 'events.jsonl', 'log.txt'):
        assert (tmp_path / name).stat().st_size > 0


def test_a_finished_run_is_only_evaluated_again(tmp_path):
    config = tiny_config()
    first = train(config, tmp_path)
    assert train(config, tmp_path) == first
    assert [row['event'] for row in read_events(tmp_path)].count('compile') == 1


def test_another_config_is_refused_and_nothing_overwritten(tmp_path):
    train(tiny_config(), tmp_path)
    before = (tmp_path / 'config.json').read_text()
    with pytest.raises(ConfigError, match=r'another config \(optimizer.learning_rate: 0.01 there'):
        train(tiny_config(**{'optimizer.learning_rate': 0.5}), tmp_path)
    assert (tmp_path / 'config.json').read_text() == before


def test_a_run_goes_on_though_its_config_knows_less_fields(tmp_path):
    first = train(tiny_config(), tmp_path)
    path = tmp_path / 'config.json'
    saved = json.loads(path.read_text())
    del saved['precision'], saved['optimizer']['ema']
    path.write_text(json.dumps(saved))
    assert train(tiny_config(), tmp_path) == first


def test_what_does_not_change_the_numbers_may_change(tmp_path, monkeypatch):
    stop_at(monkeypatch, 2)
    with pytest.raises(Preempted):
        train(tiny_config(**{'mesh.fsdp': 2}), tmp_path / 'moved')
    train(tiny_config(**{'mesh.tensor': 4}), tmp_path / 'moved')
    train(tiny_config(), tmp_path / 'still')
    moved, still = numbers(tmp_path / 'moved'), numbers(tmp_path / 'still')
    assert [row.keys() for row in moved] == [row.keys() for row in still]
    for one, other in zip(moved, still, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_run_that_diverges_says_so_and_saves_nothing_bad(tmp_path):
    config = tiny_config(
        **{'optimizer.name': 'sgd', 'optimizer.learning_rate': 1e30, 'checkpoint.every': 1}
    )
    with pytest.raises(
        Diverged, match=r'train/loss is (nan|inf).*lower optimizer.learning_rate'
    ) as e:
        train(config, tmp_path)
    assert e.value.exit_code == 70
    assert 'val/loss' not in read_metrics(tmp_path)[-1]
    with checkpoint.open_checkpoints(tmp_path, config.checkpoint) as checkpoints:
        assert max(checkpoint.steps(checkpoints), default=0) <= 1


def test_best_checkpoint_is_kept_and_tested(tmp_path, monkeypatch):
    scores = iter([0.5, 0.2, 0.9, 0.7])
    evaluate = Session._evaluate

    def scripted(self, step, state):
        monkeypatch.setattr(self, 'evaluate', lambda *_: {'loss': next(scores)})
        return evaluate(self, step, state)

    monkeypatch.setattr(Session, '_evaluate', scripted)
    config = tiny_config(
        **{
            'train.steps': 4,
            'eval.every': 1,
            'checkpoint': {'every': 1, 'keep': 1, 'best': 'val/loss'},
        }
    )
    train(config, tmp_path)
    with checkpoint.open_checkpoints(tmp_path, config.checkpoint) as checkpoints:
        assert checkpoint.steps(checkpoints) == [2, 4]
        assert checkpoint.pick(checkpoints, 'best', 'val/loss') == 2
        with pytest.raises(CheckpointError, match=r"no checkpoint '3'.*one of 2, 4"):
            checkpoint.pick(checkpoints, '3', None)
    assert json.loads((tmp_path / 'evaluation' / 'test.json').read_text())['step'] == 2


def test_early_stopping_stops(tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.6, 0.5, 0.1, 0.1])
    evaluate = Session._evaluate

    def scripted(self, step, state):
        monkeypatch.setattr(self, 'evaluate', lambda *_: {'loss': next(scores)})
        return evaluate(self, step, state)

    monkeypatch.setattr(Session, '_evaluate', scripted)
    values = {'eval.every': 1, 'train.early_stopping': {'metric': 'val/loss', 'patience': 2}}
    train(tiny_config(**values), tmp_path)
    assert max(row['step'] for row in read_metrics(tmp_path) if 'val/loss' in row) == 4


def test_metrics_that_are_never_measured_cannot_steer(tmp_path):
    with pytest.raises(
        ConfigError, match=r"config.checkpoint.best: no metric 'val/auc' is measured"
    ):
        train(tiny_config(**{'checkpoint.best': 'val/auc'}), tmp_path)


def test_weights_of_another_run(tmp_path):
    train(tiny_config(), tmp_path / 'first')
    init_from = {'run': str(tmp_path / 'first'), 'leaves': 'hidden'}
    values = {'init_from': init_from, 'train.steps': 1, 'seed': 1, 'optimizer.learning_rate': 1e-9}
    train(tiny_config(**values), tmp_path / 'second')
    train(tiny_config(**{**values, 'init_from': None}), tmp_path / 'fresh')
    runs = ('first', 'second', 'fresh')
    first, second, fresh = (_params(tmp_path / name, tiny_config()) for name in runs)
    for name in first:
        source = first if 'hidden' in name else fresh
        assert second[name] == pytest.approx(source[name], abs=1e-6), name
    assert 'init_from left fresh: read_out/kernel' in (tmp_path / 'second' / 'log.txt').read_text()
    with pytest.raises(CheckpointError, match='nothing to load'):
        train(tiny_config(**{**values, 'init_from.leaves': 'no_such'}), tmp_path / 'third')


def _params(workdir, config):
    with checkpoint.open_checkpoints(workdir, config.checkpoint) as checkpoints:
        step = checkpoint.steps(checkpoints)[-1]
        params = checkpoint.restore(checkpoints, step, build(config).abstract).params
    return dict(zip(trees.names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))


def test_a_checkpoint_of_another_model_is_described(tmp_path):
    train(tiny_config(), tmp_path)
    config = tmp_path / 'config.json'
    config.write_text(config.read_text().replace('16,\n      16', '32,\n      16'))
    with pytest.raises(
        CheckpointError, match=r'hidden_0/dense/bias has shape \(16,\) in it, \(32,\)'
    ):
        train(tiny_config(**{'model.widths': (32, 16)}), tmp_path)


def test_every_transfer_in_the_loop_is_meant(tmp_path, monkeypatch):
    run = Session.run

    def guarded(self, state, start):
        with jax.transfer_guard('disallow'):
            return run(self, state, start)

    monkeypatch.setattr(Session, 'run', guarded)
    train(tiny_config(**{'train.log_every': 2}), tmp_path)


def test_the_step_compiles_once(tmp_path, compilations):
    train(tiny_config(), tmp_path)
    assert compilations('train_step') == 1
