"""Checkpoints that are damaged, strange, of another kind, or not worth saving."""

import json
import logging
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from bigjax import cli, seals
from bigjax.config import CheckpointConfig
from bigjax.errors import CheckpointError, Diverged
from bigjax.train import checkpoint, folder, manifest
from bigjax.train.build import Run, build
from bigjax.train.loop import train
from tests.faults.runs import assert_resumed, command, flip, good, largest, numbers, there, tree
from tests.train.tiny import tiny_config


@pytest.fixture(autouse=True)
def heard(caplog):
    with caplog.at_level(logging.INFO, 'bigjax'):
        yield caplog


def test_row_12_a_flipped_bit_in_any_file_is_found_and_named(run):
    files = [path for path in (run / 'checkpoints' / '6').rglob('*') if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        for number in range(min(10, len(content))):
            flip(path, at=number * len(content) // 10, bit=number % 8)
            found = manifest.fault(run / 'checkpoints' / '6')
            assert found is not None
            assert str(path) in found
            path.write_bytes(content)
    assert manifest.fault(run / 'checkpoints' / '6') is None


def test_row_12_a_flipped_bit_costs_a_checkpoint_and_not_the_run(run, whole, config):
    damaged = largest(run / 'checkpoints' / '6')
    flip(damaged)
    train(config, run)
    assert f'checkpoint 6 is not used: {damaged} has other bytes' in (run / 'log.txt').read_text()
    assert_resumed(run, None, 4)
    assert numbers(run) == numbers(whole)
    assert good(run, config) == 6  # in place of the bad one


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize('harm', [_truncate, lambda path: path.unlink()], ids=['truncated', 'gone'])
@pytest.mark.parametrize('part', ['data', 'manifest'])
def test_row_13_what_is_truncated_or_missing_is_passed_over(run, config, heard, harm, part):
    saved = run / 'checkpoints' / '6'
    path = largest(saved) if part == 'data' else saved / 'manifest.json'
    harm(path)
    assert good(run, config) == 4
    assert f'checkpoint 6 is not used: {path}' in heard.text
    with (
        checkpoint.open_checkpoints(run, config.checkpoint) as checkpoints,
        pytest.raises(CheckpointError, match=f'no good checkpoint.*{path}'),
    ):
        checkpoint.pick(checkpoints, '6', None)


def test_row_14_stray_folders_are_ignored(run, whole, config):
    saved = run / 'checkpoints'
    for name in ('99999', 'junk', '7.partial', '8.partial.orbax-checkpoint-tmp'):
        (saved / name).mkdir()
    (saved / '77').write_text('a file')
    train(config, run)
    assert numbers(run) == numbers(whole)
    assert {path.name for path in saved.iterdir()} == {'2', '4', '6', '99999', 'junk', '77'}
    log = (run / 'log.txt').read_text()
    for name in ('99999', 'junk', '77'):
        assert f'{saved / name} is no checkpoint, and ignored' in log


@pytest.mark.parametrize('harm', ['flipped', 'no manifests', 'one file left'])
def test_row_15_nothing_starts_over_bad_checkpoints(run, config, harm, capsys):
    for step in map(str, there(run, config)):
        if harm == 'flipped':
            flip(largest(run / 'checkpoints' / step))
        elif harm == 'no manifests':  # as one of Orbax alone has none
            (run / 'checkpoints' / step / 'manifest.json').unlink()
        else:
            shutil.rmtree(run / 'checkpoints' / step / 'state')
    saved, metrics = tree(run / 'checkpoints'), (run / 'metrics.jsonl').read_bytes()
    assert cli.main(command(run, '--config.checkpoint.keep=1')) == 78
    (line,) = capsys.readouterr().err.splitlines()
    assert f'no good checkpoint in {run / "checkpoints"}: {run / "checkpoints" / "6"}' in line
    assert tree(run / 'checkpoints') == saved
    assert (run / 'metrics.jsonl').read_bytes() == metrics


def test_row_15_only_a_folder_without_any_starts_at_0(run, whole, config):
    shutil.rmtree(run / 'checkpoints')
    train(config, run)
    assert numbers(run) == numbers(whole)


def test_row_18_a_passing_error_is_tried_again_and_a_lasting_one_is_not(run, config, monkeypatch):
    opens, open_file = [], manifest.Path.open
    monkeypatch.setattr(manifest, 'WAITS', (0.0, 0.0, 0.0))

    def failing(path, *args, **kwargs):
        if path.parent.parent == run / 'checkpoints' / '6':
            opens.append(path)
            if len(opens) <= last:
                raise OSError(5, 'Input/output error')
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(manifest.Path, 'open', failing)
    last = 2
    assert good(run, config) == 6
    last, opens[:] = 10**6, []
    assert good(run, config) == 4
    assert 0 < len(opens) <= 4 * len(set(opens))


@pytest.mark.parametrize(
    ('field', 'value', 'said'),
    [
        ('optimizer.name', 'sgd', r'optimizer/\S+ is only in it'),
        ('model.widths', [32, 16], r'hidden_0/dense/bias has shape \(16,\) in it, \(32,\) here'),
    ],
)
def test_row_24_another_model_or_optimizer_is_told_leaf_by_leaf(run, config, field, value, said):
    before = tree(run / 'checkpoints')
    path = run / folder.CONFIG
    plain = json.loads(path.read_text())
    section, name = field.split('.')
    place = plain[section] if name in plain[section] else plain[section]['options']
    place[name] = value
    path.write_text(json.dumps(plain))
    with pytest.raises(CheckpointError, match=said) as error:
        train(folder.saved_config(run), run)
    assert error.value.exit_code == 78
    assert tree(run / 'checkpoints') == before


def test_a_manifest_of_a_later_format_is_refused(run, config):
    path = run / 'checkpoints' / '6' / 'manifest.json'
    body = manifest.read(path.parent) | {'format': 2, 'bigjax': '9.0'}
    path.write_bytes(seals.seal(body))
    with pytest.raises(CheckpointError, match=r'format 2, of bigjax 9.0; expected at most 1'):
        train(config, run)


def test_bad_checkpoints_do_not_push_good_ones_out(run, config):
    flip(largest(run / 'checkpoints' / '6'))
    flip(largest(run / 'checkpoints' / '4'))
    ran = build(config)
    kept = tiny_config(checkpoint={'keep': 2}).checkpoint
    with jax.set_mesh(ran.mesh), checkpoint.open_checkpoints(run, kept) as checkpoints:
        assert checkpoint.latest_good(checkpoints) == 2
        state = checkpoint.restore(checkpoints, 2, ran.abstract)
        checkpoint.save(checkpoints, 5, state, {})
        checkpoints.wait()
        assert checkpoint.steps(checkpoints) == [2, 5, 6]  # 6 is yet to come again
        checkpoint.save(checkpoints, 6, state, {})
        checkpoints.wait()
        assert checkpoint.steps(checkpoints) == [5, 6]
    assert good(run, config) == 6


def test_every_leaf_restored_has_a_named_sharding(run, config):
    ran = build(config)
    with jax.set_mesh(ran.mesh), checkpoint.open_checkpoints(run, config.checkpoint) as checkpoints:
        leaves = jax.tree.leaves(checkpoint.restore(checkpoints, 6, ran.abstract))
    assert len(leaves) > 10
    for leaf in leaves:
        assert isinstance(leaf.sharding, NamedSharding)
        assert leaf.sharding.mesh == ran.mesh


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, config, monkeypatch):
    """Of step 4 the loss and the gradient are finite; what is made of them is not."""
    jitted_step = Run.jitted_step

    def poisoned(run):
        step = jitted_step(run)

        def update(state, batch):
            state, logged = step(state, batch)
            params = jax.tree.map(lambda x: x * jnp.inf, state.params)
            return replace(state, params=params) if int(state.step) == 4 else state, logged

        return update

    monkeypatch.setattr(Run, 'jitted_step', poisoned)
    with pytest.raises(Diverged, match=r'step 4 is not saved: params/\S+ is not finite') as error:
        train(config, tmp_path)
    assert error.value.exit_code == 70
    assert good(tmp_path, config) == 2


def test_weights_lie_uncompressed(tmp_path):
    """Zeros, of which compression would leave nothing."""
    config = CheckpointConfig(keep=1)
    with checkpoint.open_checkpoints(tmp_path, config) as checkpoints:
        checkpoint.save_params(checkpoints, {'kernel': jnp.zeros((500, 500))})
    assert sum(path.stat().st_size for path in tmp_path.rglob('*') if path.is_file()) > 1_000_000
