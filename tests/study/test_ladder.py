"""Ladders: shapes and steps that fill budgets, leaves that go on from trunks, the next config."""

import json

import numpy as np
import pytest
from rich.console import Console

from bigjax import cli, config, config_file
from bigjax.errors import CheckpointError, ConfigError, DataError
from bigjax.models.flops import palm
from bigjax.study import jobs, ladder, ledger, points, shapes, sweep
from bigjax.study.fits.published import HOFFMANN
from bigjax.train.loop import train

BASE = {
    'model': {
        'name': 'transformer',
        'layers': 2,
        'width': 32,
        'heads': 4,
        'positions': 'rope',
        'norm': 'rms',
        'bias': False,
    },
    'task': 'language_model',
    'data': {'name': 'text', 'sequence_length': 16},
    'optimizer': {
        'name': 'adamw',
        'learning_rate': 3e-3,
        'schedule': {'name': 'cosine', 'warmup': '10%'},
    },
    'train': {'steps': 10, 'batch_size': 8, 'log_every': 1},
    'eval': {'every': '100%'},
    'checkpoint': {'every': '100%'},
}


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A config on a text of its own; the working folder is a new one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.txt').write_text('To be, or not to be: that is the question.\n' * 200)
    (tmp_path / 'base.py').write_text(f'def get_config():\n    return {BASE!r}\n')
    return config_file.load('base.py', [('data.path', str(tmp_path / 'text.txt'))])


def test_rungs_fill_their_budgets(base):
    rungs = shapes.climb(base, [3e8, 1e9, 1e10], [2, 20])
    assert len(rungs) == 6
    for rung in rungs:
        fields, shape = rung.shape.fields, rung.shape
        width, layers = fields['model.width'], fields['model.layers']
        assert abs(rung.flops / rung.budget - 1) <= 0.01
        assert width == 8 * fields['model.heads']
        assert layers == max(1, round(width / 16))
        params = layers * (12 * width**2 + 2 * width) + width + 256 * width
        assert shape.params == params
        assert shape.flops_a_step == palm(params, layers, width, 16, 8 * 16)
        assert rung.tokens == rung.steps * 8 * 16
    known = shapes.Shapes(base)
    for rung, asked in zip(rungs, [2, 20] * 3, strict=True):
        multiple = rung.shape.fields['model.heads']
        around = [known.at(k) for k in (multiple - 1, multiple + 1) if k]
        others = [rung.budget / s.flops_a_step * s.tokens_a_step / s.params for s in around]
        ours = abs(np.log(rung.tokens / rung.shape.params / asked))
        assert all(ours <= abs(np.log(other / asked)) for other in others)


def test_a_shortage_of_sizes_is_told_before_the_runs(base):
    rungs = shapes.climb(base, [1e9, 4e9], [2, 8])
    assert 'sizes below the top budget' in ladder.shortage(rungs)
    assert ladder.shortage(shapes.climb(base, [1e9, 4e9, 1e11], [1, 8, 64])) is None


def test_proportions():
    options = {'layers': 4, 'width': 64, 'heads': 8, 'kv_heads': 2, 'mlp': 96}
    assert shapes._fields(options, 1) == {
        'layers': 2, 'width': 32, 'heads': 4, 'kv_heads': 1, 'mlp': 48,
    }  # fmt: skip
    assert shapes._fields(options, 4) == {
        'layers': 8, 'width': 128, 'heads': 16, 'kv_heads': 4, 'mlp': 192,
    }  # fmt: skip


def test_what_cannot_be_climbed(base):
    with pytest.raises(ConfigError, match=r'budget 1e\+06: .* lower train.batch_size'):
        shapes.climb(base, [1e6], [20])
    with pytest.raises(ConfigError, match='--budgets: expected finite numbers above 0'):
        shapes.climb(base, [], [20])
    other = config.with_values(base, model={'name': 'mlp', 'widths': (8,)})
    with pytest.raises(ConfigError, match=r'expects config\.model to be a transformer'):
        shapes.climb(other, [1e9], [20])


def losses(folder):
    rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return {
        (row['step'], key): value
        for row in rows
        for key, value in row.items()
        if key.split('/')[0] in ('train', 'val', 'test')
    }


@pytest.mark.slow
def test_a_leaf_is_bit_for_bit_the_run_that_it_stands_for(base, tmp_path):
    quiet = Console(quiet=True)
    shared = {'optimizer.schedule': {'name': 'constant', 'warmup': 2}}
    decay = {'optimizer.schedule': {'name': 'warmup_stable_decay', 'warmup': 2, 'decay': 4}}
    trunk = config.with_values(base, **shared, **{'train.steps': 6})
    whole = config.with_values(base, **decay, **{'train.steps': 10})
    branch = {'run': str(tmp_path / 'trunk'), 'whole': True}
    leaf = config.with_values(whole, init_from=branch)
    with pytest.raises(CheckpointError, match='trunk'):
        train(leaf, tmp_path / 'leaf', quiet)
    train(trunk, tmp_path / 'trunk', quiet)
    train(whole, tmp_path / 'whole', quiet)
    train(leaf, tmp_path / 'leaf', quiet)
    expected = {key: v for key, v in losses(tmp_path / 'whole').items() if key[0] > 6}
    assert len(expected) > 8
    assert losses(tmp_path / 'leaf') == expected
    event, outcome = ledger.outcome(tmp_path / 'leaf')
    assert (event, outcome['tokens']) == ('finished', 10 * 8 * 16)


def test_leaves_take_all_or_nothing(base):
    with pytest.raises(ConfigError, match='whole takes all leaves'):
        config.with_values(base, init_from={'run': 'x', 'whole': True, 'leaves': 'block'})


def test_a_study_of_trunks_and_leaves(base, tmp_path):
    rungs = shapes.climb(base, [1e9, 4e9], [2, 8])
    folder, workdir = tmp_path / 'steps', tmp_path / 'runs'
    ladder.write(base, rungs, folder, workdir)
    planned = jobs.plan(points.read(folder / 'sweep.py', smoke=False), folder)
    ids = [job.id for job in planned]
    leaves = [job for job in planned if 'optimizer.schedule.decay' in job.overrides]
    assert sorted(job.overrides['train.steps'] for job in leaves) == sorted(r.steps for r in rungs)
    for job in planned:
        source = sweep._begins_from(job)
        if source:
            assert ids.index(source) < ids.index(job.id)
            begun = planned[ids.index(source)].overrides
            assert begun['train.steps'] <= job.overrides['train.steps']
    for leaf in leaves:
        steps, decay = leaf.overrides['train.steps'], leaf.overrides['optimizer.schedule.decay']
        assert decay == round(steps / 5)
        source = sweep._begins_from(leaf)
        if source:
            trunk = planned[ids.index(source)].overrides
            assert trunk['train.steps'] == steps - decay
    assert any(sweep._begins_from(job) for job in planned)
    with pytest.raises(ConfigError, match=r'has a sweep\.py'):
        ladder.write(base, rungs, folder, workdir)
    with pytest.raises(DataError, match=r'none of 4 runs is done'):
        ladder.results(folder, workdir)


def test_from_losses_to_the_next_config(base, tmp_path, capsys):
    """A ledger whose losses are those of a law, as if the sweep had run."""
    flags = ['--budgets=1e9,4e9,1.6e10', '--tokens_per_param=1,4,16,64']
    text = f'--config.data.path={tmp_path / "text.txt"}'
    assert cli.main(['ladder', 'steps', '--config=base.py', *flags, text]) == 0
    assert 'of it' in capsys.readouterr().out
    folder, workdir = tmp_path / 'steps', tmp_path / 'runs' / 'steps'
    known = shapes.Shapes(config_file.load('steps/config.py'))
    for job in jobs.plan(points.read(folder / 'sweep.py', smoke=False), folder):
        shape = known.at(job.overrides['model.heads'])
        steps = job.overrides['train.steps']
        tokens = steps * shape.tokens_a_step
        loss = float(HOFFMANN.loss(shape.params, tokens))
        if job.overrides['optimizer.schedule.name'] == 'constant':
            loss += 1  # not of the law: a trunk has not decayed
        workdir.mkdir(parents=True, exist_ok=True)
        ledger.append(
            workdir, 'finished', job.id, params=shape.params, tokens=tokens,
            flops=steps * shape.flops_a_step, formula='PaLM', metrics={'val/loss': loss},
        )  # fmt: skip
    assert cli.main(['ladder', 'steps', '--fit', '--next=1e12']) == 0
    fit = json.loads((folder / 'fit' / 'fit.json').read_text())
    assert fit['parameters']['alpha']['value'] == pytest.approx(0.34, rel=1e-3)
    assert fit['flops_convention'] == 'PaLM'
    assert abs(fit['held_out'][0]['relative_miss']) < 1e-4
    found = config_file.load('steps/next.py')
    width = found.model.options['width']
    cost = fit['flops_per_param_token']
    best = HOFFMANN.G * (1e12 / cost) ** float(HOFFMANN.a)
    sizes = {k: known.at(k).params for k in (width // 8 - 1, width // 8, width // 8 + 1) if k}
    assert min(sizes, key=lambda k: abs(np.log(sizes[k] / best))) == width // 8
    steps = found.train.steps.amount
    assert steps * known.at(width // 8).flops_a_step == pytest.approx(1e12, rel=0.01)
    assert found.optimizer.schedule.name == 'warmup_stable_decay'


def test_a_ladder_needs_something_to_do(tmp_path, capsys):
    assert cli.main(['ladder', str(tmp_path)]) == 78
    assert 'expects --config and --budgets, or --fit' in capsys.readouterr().err
