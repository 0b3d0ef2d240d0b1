"""No pickle, no name that leaves its root, no secret that leaves the environment."""

import ast
import json
import logging
import shutil
from contextlib import suppress

import numpy as np
import pytest
from rich.console import Console

from bigjax import cli, safety
from bigjax.data import idx
from bigjax.errors import BigjaxError, CheckpointError, ConfigError, DataError
from bigjax.interop import tensors
from bigjax.train import folder
from bigjax.train.progress import logging_to
from tests.faults.runs import tree
from tests.test_architecture import PACKAGE

MODULES = {'pickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'marshal'}
CALLS = {'yaml.load', 'torch.load', 'pd.read_pickle', 'eval', 'exec', 'os.system'}
NUMPY = {'np.load', 'np.save', 'numpy.load', 'numpy.save'}


def named(code):
    """(dotted name, keywords) of everything that is imported or called."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, {}) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f'{node.module}.{alias.name}', {}) for alias in node.names)
        elif isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), given


def faults(code):
    """What in some Python could run what it reads."""
    return [
        name
        for name, given in named(code)
        if name.split('.')[0] in MODULES
        or name in CALLS
        or (name in NUMPY and given.get('allow_pickle') != 'False')
        or name.endswith('exec_module')
        or 'shell' in given
    ]


def test_nothing_that_is_read_is_run_but_a_config_file():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob('*.py')
        for name in faults(path.read_text())
    }
    assert found == {('config_file.py', 'spec.loader.exec_module')}


@pytest.mark.parametrize(
    'code',
    [
        'import pickle', 'from pickle import loads', 'import torch\ntorch.load(f)', 'np.load(f)',
        'np.load(f, allow_pickle=True)', 'import yaml\nyaml.load(f)', 'eval(text)', 'exec(text)',
        'subprocess.run(text, shell=True)', 'joblib.load(f)', 'os.system(text)',
    ],
)  # fmt: skip
def test_the_search_finds(code):
    assert faults(code)


@pytest.mark.parametrize('suffix', ['.bin', '.pt', '.pth', '.pkl', '.ckpt'])
def test_weights_that_can_run_code_are_refused_by_name(tmp_path, suffix, capfd):
    path = tmp_path / f'model{suffix}'
    path.write_bytes(b'cos\nsystem\n(S"touch ran"\ntR.')
    assert cli.main(['import', str(path), f'--workdir={tmp_path}/run']) == 78
    assert f'{suffix} files are pickles, which can run code' in capfd.readouterr().err
    with pytest.raises(CheckpointError, match=f'{suffix} files are pickles'):
        tensors.of_folder(tmp_path)
    (tmp_path / tensors.INDEX).write_text(json.dumps({'weight_map': {'a': path.name}}))
    with pytest.raises(CheckpointError, match=f'{suffix} files are pickles'):
        tensors.of_folder(tmp_path)
    assert not (tmp_path / 'run').exists()


def test_a_tokenizer_that_can_run_code_is_refused_by_name(tmp_path):
    from bigjax.data import tokenizers

    with pytest.raises(DataError, match=r'got a \.bin file, which is not read'):
        tokenizers.load(tmp_path / 'tokenizer.bin')


OUTSIDE = ['../x', '/etc/passwd', '..', '.', '', '.hidden', 'a/b', 'a\\b', 'a\0', 'a\n', '-x', 'é',
           'a' * 129, '~/x', 'a b']  # fmt: skip


@pytest.mark.parametrize('name', OUTSIDE)
def test_names_stay_below_their_root(tmp_path, name):
    with pytest.raises(ConfigError, match='here: expected the name of a file'):
        safety.child(tmp_path, name, 'here')
    with pytest.raises(BigjaxError):
        idx.load(idx.Config(str(tmp_path), {'train': (name, 'labels')}))
    (tmp_path / tensors.INDEX).write_text(json.dumps({'weight_map': {'a': name}}))
    with pytest.raises(BigjaxError, match='expected the name of a file'):
        tensors.of_folder(tmp_path)


@pytest.mark.parametrize('name', ['a', '0', 'model-00001-of-00002.safetensors', 'x_1.y', 'a' * 128])
def test_names_that_may_be(tmp_path, name):
    assert safety.child(tmp_path, name, 'here') == tmp_path / name
    assert safety.child(tmp_path, name, 'here').resolve().parent == tmp_path.resolve()


def test_a_name_from_outside_cannot_make_idx_read_elsewhere(tmp_path):
    (tmp_path / 'root').mkdir()
    (tmp_path / 'images').write_bytes(bytes([0, 0, 8, 3]) + np.array([1, 1, 1], '>u4').tobytes())
    with pytest.raises(ConfigError, match=r"got '\.\./images'"):
        idx.load(idx.Config(str(tmp_path / 'root'), {'train': ('../images', 'labels')}))


@pytest.mark.parametrize(
    'flags',
    [['--split=../x'], ['--checkpoint=../6'], ['--checkpoint=/6'], ['--config.data.name=../wine'],
     ['--config.data.splits.test=../x'], ['--config.data.splits.x=train'],
     ['--config.model.name=..mlp'], ['--config.sinks=../x']],
    ids=str,
)  # fmt: skip
def test_no_name_of_a_command_leads_out_of_the_run(run, flags, capfd):
    before = tree(run.parent)
    with suppress(SystemExit):  # of argparse, which refuses some itself
        assert cli.main(['eval', f'--run={run}', *flags]) == 78
    assert 'Traceback' not in capfd.readouterr().err
    assert tree(run.parent) == before


SECRET = 'wandb-0123456789abcdef'


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv('WANDB_API_KEY', SECRET)
    return SECRET


def config_file(place):
    (place / 'config.py').write_text(
        'from tests.train.tiny import BASE\ndef get_config():\n    return dict(BASE)\n'
    )
    return f'--config={place}/config.py'


def test_no_secret_is_written_into_a_run(tmp_path, secret, capfd, monkeypatch):
    arguments = ['train', config_file(tmp_path), f'--workdir={tmp_path}/run']
    told = ['bigjax', *arguments, f'--note={secret}', '--from=https://me:hunter2@host/x?token=abc1']
    monkeypatch.setattr('sys.argv', told)
    build = folder.claim

    def talkative(workdir, config):
        logging.getLogger('bigjax.train').warning('fetching with %s', secret)
        build(workdir, config)

    monkeypatch.setattr(folder, 'claim', talkative)
    assert cli.main(arguments) == 0
    written = b''.join(tree(tmp_path / 'run').values())
    for word in (secret, 'hunter2', 'abc1'):
        assert word.encode() not in written
    recorded = json.loads((tmp_path / 'run' / 'env.json').read_text())['command']
    expected = ['--note=[redacted]', '--from=https://[redacted]@host/x?[redacted]']
    assert recorded == ['bigjax', *arguments, *expected]
    assert 'fetching with [redacted]' in (tmp_path / 'run' / 'log.txt').read_text()


def test_a_traceback_in_the_log_is_redacted_too(tmp_path, secret):
    with logging_to(tmp_path, Console(quiet=True)):
        try:
            raise ValueError(secret)
        except ValueError:
            logging.getLogger('bigjax.train').exception('it failed')
    log = (tmp_path / 'log.txt').read_text()
    assert 'ValueError: [redacted]' in log
    assert secret not in log


@pytest.mark.parametrize(
    'value', [SECRET, f'x-{SECRET}-y', 'https://me:hunter2@host/x', 'hf_abcdefghijklmnopqrst']
)
def test_a_config_that_holds_a_secret_is_refused_and_nothing_kept(tmp_path, secret, value, capfd):
    flags = [config_file(tmp_path), f'--workdir={tmp_path}/run', f'--config.data.path={value}']
    assert cli.main(['train', *flags]) == 78
    (line,) = capfd.readouterr().err.splitlines()
    assert 'config.data.path holds a secret' in line
    assert value not in line
    assert not (tmp_path / 'run' / 'config.json').exists()


def test_no_secret_is_printed(tmp_path, secret, capfd):
    assert cli.main(['eval', f'--run={tmp_path}/{secret}']) == 78
    line = capfd.readouterr().err
    assert secret not in line
    assert f'no run in {tmp_path}/[redacted]' in line


@pytest.mark.parametrize(
    'text',
    ['--config.train.steps=8', 'keyboard', 'tokens', 'https://host/x?split=train', 'a@b.c: d',
     'runs/tokenizer', 'hf:glue', 'data/key.csv', 'params/key/kernel'],
)  # fmt: skip
def test_what_is_no_secret_stays(text, secret):
    assert safety.redacted(text) == text


def test_a_run_is_read_from_its_json_and_no_config_runs_again(tmp_path, capfd):
    """The config file, were it run again, would fail; and it is gone."""
    path = config_file(tmp_path)
    assert cli.main(['train', path, f'--workdir={tmp_path}/run']) == 0
    shutil.move(tmp_path / 'config.py', tmp_path / 'moved.py')
    assert cli.main(['eval', f'--run={tmp_path}/run']) == 0
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['train']['steps'] == '6 steps'
    assert folder.saved_config(tmp_path / 'run').train.batch_size == 16
    (tmp_path / 'run' / 'config.json').write_text('raise SystemExit(1)')
    capfd.readouterr()
    assert cli.main(['eval', f'--run={tmp_path}/run']) == 78
    assert 'config.json is damaged' in capfd.readouterr().err


def test_what_reads_a_run_cannot_be_given_a_config_file(run, capfd):
    for command in ('eval', 'export', 'generate', 'report'):
        where = [str(run)] if command == 'report' else [f'--run={run}']
        more = ['--to=hf', f'--out={run}/out'] if command == 'export' else []
        with pytest.raises(SystemExit):
            cli.main([command, *where, *more, '--config=x.py'])
        assert "unknown argument '--config=x.py'" in capfd.readouterr().err
