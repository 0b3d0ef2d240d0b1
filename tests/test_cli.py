import json
import os
import subprocess
import sys

import pytest

from bigjax import cli

CONFIG = """
\"\"\"A tiny run.\"\"\"
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    config.model = {'name': 'mlp', 'widths': (8,)}
    config.task = 'classification'
    config.data = 'wine'
    config.train = {'steps': 4, 'batch_size': 16, 'log_every': 2}
    config.eval = {'every': 2}
    config.checkpoint = {'every': 2}
    return config
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'tiny.py'
    path.write_text(CONFIG)
    return f'--config={path}'


def test_train_then_eval_then_report(config, tmp_path, capfd):
    run = tmp_path / 'run'
    assert cli.main(['train', config, f'--workdir={run}', '--config.train.log_every=1']) == 0
    out = capfd.readouterr().out
    assert 'test' in out
    assert 'accuracy' in out
    assert (run / 'report.html').is_file()
    trained = json.loads((run / 'evaluation' / 'test.json').read_text())['metrics']
    assert cli.main(['eval', f'--run={run}', '--split=test']) == 0
    again = json.loads((run / 'evaluation' / 'test.json').read_text())['metrics']
    assert again == trained
    assert cli.main(['eval', f'--run={run}', '--checkpoint=2']) == 0
    earlier = json.loads((run / 'evaluation' / 'test.json').read_text())
    assert earlier['step'] == 2
    assert earlier['metrics'] != trained
    assert cli.main(['report', str(run)]) == 0


def test_crossval_reports_mean_and_deviation_over_the_folds(config, tmp_path, capfd):
    assert cli.main(['crossval', config, f'--workdir={tmp_path / "cv"}', '--folds=3']) == 0
    results = json.loads((tmp_path / 'cv' / 'crossval.json').read_text())
    accuracies = results['folds']['test/accuracy']
    assert len(accuracies) == 3
    mean, deviation = results['summary']['test/accuracy']
    assert mean == pytest.approx(sum(accuracies) / 3)
    assert deviation**2 == pytest.approx(sum((a - mean) ** 2 for a in accuracies) / 2)
    assert 'test/accuracy' in capfd.readouterr().out


def test_describe_shows_every_parameter_and_trains_nothing(config, capfd):
    assert cli.main(['describe', config, '--config.mesh.fsdp=2', '--config.mesh.tensor=2']) == 0
    out = capfd.readouterr().out
    assert 'read_out/kernel' in out
    assert '8 x 3' in out
    assert '4 x 3' in out  # half of it on each device of fsdp
    assert 'parameters                       139' in out  # 13 * 8 + 8 + 8 * 3 + 3
    assert 'mesh                             data=2 fsdp=2 tensor=2' in out


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--config.train.stesp=3'], "unknown key config.train.stesp: did you mean 'steps'"),
        (['--config.optimizer.learning_rate=nan'], 'expected a finite number'),
        (['--config.model.name=mpl'], "unknown config.model.name 'mpl': did you mean 'mlp'"),
        (['--config.model.widhts=3'], "unknown key config.model.widhts: did you mean 'widths'"),
        (['--config.optimizer.name=adamm'], "did you mean 'adam'"),
        (['--config.optimizer.bb1=.5'], 'unknown key config.optimizer.bb1'),
        (['--config.mesh.fsdp=3'], 'meshes that fit: fsdp=4 data=2'),
        (['--config.train.batch_size=12'], 'expected a multiple of 8'),
        (['--config.train.batch_size=4000'], 'fewer than config.train.batch_size=4000'),
        (['--config.eval.metrics=acuracy'], "no metric 'acuracy'"),
        (['--config.task.name=regression'], 'use task classification'),
        (['--config.init_from=nowhere'], 'nowhere: expected a hub folder'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_78(config, tmp_path, capfd, flags, message):
    assert cli.main(['train', config, f'--workdir={tmp_path / "run"}', *flags]) == 78
    error = capfd.readouterr().err.strip()
    assert message in error
    assert error.count('\n') == 0
    assert not list((tmp_path / 'run').glob('checkpoints/*/'))


def test_a_run_folder_that_cannot_be_written(config, tmp_path, capfd):
    (tmp_path / 'file').write_text('')
    assert cli.main(['train', config, f'--workdir={tmp_path / "file" / "run"}']) == 78
    assert 'choose another --workdir' in capfd.readouterr().err


def test_unknown_flags_are_not_ignored(config, tmp_path, capfd):
    with pytest.raises(SystemExit):
        cli.main(['train', config, f'--workdir={tmp_path}', '--fast'])
    assert "unknown argument '--fast'" in capfd.readouterr().err


def test_no_run_to_evaluate(tmp_path, capfd):
    assert cli.main(['eval', f'--run={tmp_path}']) == 78
    assert 'train first' in capfd.readouterr().err


def test_an_accelerator_that_is_not_there(config, tmp_path):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cuda'}
    command = [sys.executable, '-m', 'bigjax.cli', 'train', config, f'--workdir={tmp_path / "run"}']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    (line,) = (line for line in done.stderr.splitlines() if line.startswith('bigjax: '))
    assert 'JAX_PLATFORMS=cuda' in line
    assert 'or set JAX_PLATFORMS=cpu' in line


def test_text_is_tokenised_beforehand(tmp_path, capfd):
    (tmp_path / 'text.txt').write_text('some text\n' * 50)
    (tmp_path / 'lm.py').write_text(
        "def get_config():\n    return {'model': 'transformer', 'task': 'language_model',"
        " 'data': 'text', 'train': {'steps': 1}}\n"
    )
    arguments = [f'--config={tmp_path}/lm.py', f'--config.data.path={tmp_path}/text.txt']
    arguments.append(f'--config.data.cache_dir={tmp_path}/cache')
    assert cli.main(['data', 'tokenize', *arguments]) == 0
    said = capfd.readouterr().out
    assert said.startswith('1 documents, 501 tokens, 500 bytes in ')
    assert os.path.isfile(os.path.join(said.split(' in ')[1].strip(), 'manifest.json'))


def test_train_traces_steps_and_says_where_they_went(config, tmp_path, capfd):
    run = tmp_path / 'run'
    assert cli.main(['train', config, f'--workdir={run}', '--profile=4:2']) == 78
    assert 'expected START:STOP, such as 10:13' in capfd.readouterr().err
    assert cli.main(['train', config, f'--workdir={run}', '--profile=1:3']) == 0
    assert 'steps 2 to 3: ' in capfd.readouterr().out
    assert (run / 'profile' / 'summary.txt').is_file()
