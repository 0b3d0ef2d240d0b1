"""Several real processes on this machine, as a cluster's launcher or a person starts them."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bigjax import cli
from bigjax.errors import ConfigError, EnvironmentProblem
from bigjax.sharding import hosts
from bigjax.train.writers import read_events, read_metrics
from tests.faults.runs import numbers

ROOT = Path(__file__).parents[1]

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        'model': {'name': 'mlp', 'widths': (16, 16), 'dropout': 0.1},
        'task': 'classification',
        'data': 'lab.faulty',
        'train': {'steps': 8, 'batch_size': 24, 'log_every': 1},
        'eval': {'every': 4},
        'checkpoint': {'every': 4, 'keep': 9},
    })
"""

FAULTY = """
import dataclasses, os, time
import jax
from bigjax import errors
from bigjax.data import wine

Config = wine.Config

class Faulty:
    '''Rows that take SLEEP seconds a read; FAIL=1:DataError fails at a read of process 1.'''

    def __init__(self, source):
        self.source, self.reads = source, 0

    def __len__(self):
        return len(self.source)

    def __getitem__(self, rows):
        self.reads += 1
        time.sleep(float(os.environ.get('SLEEP', 0)))
        process, _, error = os.environ.get('FAIL', 'nobody:').partition(':')
        if process == str(jax.process_index()) and self.reads == 6:
            raise getattr(errors, error, ValueError)('row 7 is bad')
        return self.source[rows]

def load(config):
    dataset = wine.load(config)

    def prepare(rows):
        spec, transform = dataset.prepare(rows)
        return spec, lambda source: Faulty(transform(source))

    return dataclasses.replace(dataset, prepare=prepare)
"""

CHECKS = """
import sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pathlib import Path
from bigjax.data import batches
from bigjax.errors import PeerLost
from bigjax.sharding import hosts
from bigjax.sharding.mesh import process_rows
from bigjax.train import checkpoint
from bigjax.train.build import build
from bigjax.train.folder import saved_config

workdir, out, address, count, index = sys.argv[1:]
with hosts.joined(address, int(count), int(index), 60):
    run = build(saved_config(Path(workdir)))
    with (
        jax.set_mesh(run.mesh),
        checkpoint.open_checkpoints(Path(workdir), run.config.checkpoint) as checkpoints,
    ):
        state = checkpoint.restore(checkpoints, 8, run.abstract)
    leaves = jax.tree.leaves((state.params, state.optimizer))
    assert count == '1' or not all(leaf.is_fully_addressable for leaf in leaves)
    whole = multihost_utils.process_allgather(leaves, tiled=True)
    if hosts.leads():
        np.savez(out, *whole)

    # rows of a process that are no neighbours: the first half of the devices has the even shards
    if count != '1':
        mesh = Mesh(np.array(jax.devices()).reshape(2, -1).T, ('a', 'b'))
        sharding = NamedSharding(mesh, PartitionSpec(('a', 'b')))
        rows = process_rows(sharding, 8)
        assert (np.diff(rows) > 1).any() or count == '4'
        values = np.arange(16).reshape(8, 2)
        placed = batches.to_device({'inputs': values[rows]}, sharding, 8)['inputs']
        assert (multihost_utils.process_allgather(placed, tiled=True) == values).all()

    hosts.barrier('all are here', 60)
    try:
        if int(index) != 1:
            hosts.barrier('lunch', 2)
    except PeerLost as error:
        assert str(error) == f"barrier 'lunch': process 1 of {count} did not come within 2 s"
    else:
        assert index == '1' or count == '1'
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hosts')
    (folder / 'config.py').write_text(CONFIG)
    (folder / 'lab').mkdir()
    (folder / 'lab' / 'faulty.py').write_text(FAULTY)
    (folder / 'checks.py').write_text(CHECKS)
    return folder


started_processes = []


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    while started_processes:
        started_processes.pop().kill()


def flags(index, count, port):
    named = {'coordinator': f'127.0.0.1:{port}', 'num_processes': count, 'process_id': index}
    return [f'--{name}={value}' for name, value in named.items()], {}


def slurm(index, count, port):
    return [], {
        'SLURM_JOB_ID': str(port - 61440),  # JAX makes the port of it
        'SLURM_STEP_NODELIST': '127.0.0.1,elsewhere',
        'SLURM_NTASKS': str(count),
        'SLURM_PROCID': str(index),
        'SLURM_LOCALID': str(index),
    }


def open_mpi(index, count, port):
    return [], {
        'OMPI_MCA_orte_hnp_uri': f'{(port - 61440) * 4096}.0;tcp://127.0.0.1:1',
        'OMPI_COMM_WORLD_SIZE': str(count),
        'OMPI_COMM_WORLD_RANK': str(index),
        'OMPI_COMM_WORLD_LOCAL_RANK': str(index),
    }


def free_port():
    """One that SLURM and Open MPI jobs could have."""
    while True:
        port = random.randrange(61441, 65536)
        with socket.socket() as probe:
            if probe.connect_ex(('127.0.0.1', port)):
                return port


def launch(folder, count, devices, command, launcher=None, **env):
    """`count` processes of `devices` devices each."""
    port = free_port()
    processes = []
    for index in range(count):
        arguments, variables = launcher(index, count, port) if launcher else ([], {})
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    'PYTHONPATH': str(ROOT),
                    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
                    'http_proxy': 'http://127.0.0.1:9',
                    **variables,
                    **env,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    started_processes.extend(processes)
    return processes


def train(name, *overrides):
    return ['-m', 'bigjax.cli', 'train', '--config=config.py', f'--workdir={name}', *overrides]


def ended(processes, *codes):
    """stderr of each, once all have ended with these exit codes."""
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == list(codes), '\n----\n'.join(errors)
    return errors


def lines(errors):
    """What bigjax itself said there."""
    return [line for error in errors for line in error.splitlines() if line.startswith('bigjax: ')]


def assert_same(run, expected):
    for row, wanted in zip(numbers(run), expected, strict=True):
        assert row.keys() == wanted.keys()
        np.testing.assert_allclose(list(row.values()), list(wanted.values()), rtol=1e-5)


def until(condition, seconds=120):
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.1)


def has_step(run, step):
    return (run / 'metrics.jsonl').is_file() and any(
        row['step'] >= step for row in read_metrics(run)
    )


MESHES = {'fsdp': '--config.mesh.fsdp=4', 'tensor': '--config.mesh.tensor=4'}


@pytest.fixture(scope='module')
def alone(folder):
    """What one process of four devices measures, by mesh; made when asked for."""
    found = {}

    def measured(mesh):
        if mesh not in found:
            ended(launch(folder, 1, 4, train(f'alone-{mesh}', MESHES[mesh])), 0)
            found[mesh] = numbers(folder / f'alone-{mesh}')
        return found[mesh]

    return measured


@pytest.fixture(scope='module')
def pair(folder):
    """A whole run of two processes of two devices, parameters split over all four."""
    ended(launch(folder, 2, 2, train('pair', MESHES['fsdp']), flags), 0, 0)
    return folder / 'pair'


def test_two_processes_are_one_run(pair, alone):
    assert_same(pair, alone('fsdp'))
    assert len(numbers(pair)) == 8 + 2 + 1
    (start,) = (row for row in read_events(pair) if row['event'] == 'start')
    assert start['details']['processes'] == 2
    environment = json.loads((pair / 'env.json').read_text())
    assert environment['hosts'] == [socket.gethostname()] * 2
    assert len(environment['devices']) == 4
    log = (pair / 'log.txt').read_text().splitlines()
    assert sum('step 8/8' in line for line in log) == 1
    assert (pair / 'report.html').is_file()
    assert json.loads((pair / 'evaluation' / 'test.json').read_text())['samples']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('count', 'launcher', 'mesh'),
    [(2, open_mpi, 'tensor'), (4, slurm, 'fsdp'), (4, flags, 'tensor')],
    ids=['open-mpi-tensor', 'slurm-fsdp', 'flags-tensor'],
)
def test_the_launcher_tells_of_the_others(folder, alone, count, launcher, mesh):
    name = f'{launcher.__name__}-{mesh}'
    command = train(name, MESHES[mesh])
    ended(launch(folder, count, 4 // count, command, launcher), *[0] * count)
    assert_same(folder / name, alone(mesh))


@pytest.mark.slow
def test_any_number_of_processes_reads_the_checkpoint_of_two(folder, pair):
    found = {}
    for count in (1, 2, 4):
        out = folder / f'state-{count}.npz'
        processes = [
            launch(
                folder, 1, 4 // count,
                ['checks.py', str(pair), str(out), f'127.0.0.1:{port}', str(count), str(index)],
            )[0]
            for port in [free_port()]
            for index in range(count)
        ]  # fmt: skip
        ended(processes, *[0] * count)
        found[count] = dict(np.load(out))
    assert len(found[1]) > 10
    for count in (2, 4):
        np.testing.assert_equal(found[count], found[1])


@pytest.mark.slow
@pytest.mark.parametrize(('error', 'code'), [('ValueError', 1), ('DataError', 78)])
@pytest.mark.parametrize('failing', [0, 1])
def test_an_error_in_one_ends_all(folder, error, code, failing):
    name = f'{error}-{failing}'
    command = train(name, MESHES['fsdp'])
    processes = launch(folder, 2, 2, command, flags, FAIL=f'{failing}:{error}', SLEEP='.2')
    until(lambda: has_step(folder / name, 1))
    started = time.monotonic()
    errors = ended(processes, code, code)
    assert time.monotonic() - started < 30
    assert ('Traceback' in errors[failing]) == (error == 'ValueError')
    where = f'process 1 ({socket.gethostname()}): ' if failing else ''
    what = 'row 7 is bad' if error == 'DataError' else 'ValueError: row 7 is bad'
    expected = [f'bigjax: {where}{what}'] if failing or error == 'DataError' else []
    assert lines(errors[:1]) == expected
    assert lines(errors[1:]) == []


@pytest.mark.slow
def test_what_no_process_can_run_is_said_once(folder):
    processes = launch(folder, 2, 2, train('no', '--config.model.name=mpl'), flags)
    (line,) = lines(ended(processes, 78, 78))
    assert 'mlp' in line
    processes = launch(folder, 2, 2, train('/dev/null/no'), flags)
    (line,) = lines(ended(processes, 78, 78))
    assert 'cannot write run folder' in line


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(folder):
    port = free_port()
    processes = [
        launch(folder, 1, 2, [*train(f'own-{index}'), *flags(index, 2, port)[0]])[0]
        for index in range(2)
    ]
    (line,) = lines(ended(processes, 78, 78))
    assert 'does not see own-1/config.json' in line
    assert 'share' in line


@pytest.mark.parametrize('index', [0, 1])
def test_others_that_do_not_come_are_not_waited_for_in_vain(folder, index):
    (process,) = launch(
        folder, 1, 1,
        [*train('never'), *flags(index, 2, port := free_port())[0], '--initialization_timeout=2'],
    )  # fmt: skip
    (line,) = lines(ended([process], 1))
    said = ('not all of the 2 processes came to', 'no answer from the coordinator')[index]
    assert said in line
    assert f'127.0.0.1:{port}' in line


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (['--process_id=1'], 'together, got only --process_id=1'),
        (['--coordinator=a:1', '--num_processes=2'], 'got only --coordinator=a:1 --num_proc'),
        (['--num_processes=2'], 'got only --num_processes=2'),
        (['--coordinator=a', '--num_processes=2', '--process_id=0'], "HOST:PORT, got 'a'"),
        (['--coordinator=a:99999', '--num_processes=2', '--process_id=0'], 'HOST:PORT'),
        (['--coordinator=a:1', '--num_processes=2', '--process_id=2'], 'below --num_processes'),
        (['--coordinator=a:1', '--num_processes=2', '--process_id=-1'], 'from 0'),
    ],
)
def test_flags_that_name_no_process_are_refused(tmp_path, capsys, given, said):
    command = ['train', '--config=none.py', f'--workdir={tmp_path}']
    assert cli.main([*command, *given]) == 78
    assert said in capsys.readouterr().err


@pytest.fixture
def no_launcher(monkeypatch):
    for name in os.environ:
        if name.startswith(('SLURM_', 'OMPI_', 'PMI_', 'KUBERNETES_', 'JAX_COORDINATOR')):
            monkeypatch.delenv(name)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures('no_launcher')
def test_without_a_launcher_a_process_is_alone():
    assert hosts._launched(1) == ((None, None, None), None)


@pytest.mark.usefixtures('no_launcher')
@pytest.mark.parametrize('launcher', [slurm, open_mpi])
def test_a_launcher_gives_one_device_a_process(monkeypatch, launcher):
    set_all(monkeypatch, launcher(3, 4, 61500)[1])
    assert hosts._launched(1) == (('127.0.0.1:61500', 4, 3), [3])


@pytest.mark.usefixtures('no_launcher')
@pytest.mark.parametrize(
    ('launcher', 'more'),
    [
        (slurm, {'SLURM_STEP_NUM_NODES': '4', 'SLURM_LOCALID': '0'}),
        (open_mpi, {'OMPI_COMM_WORLD_LOCAL_SIZE': '1', 'OMPI_COMM_WORLD_LOCAL_RANK': '0'}),
    ],
)
def test_a_process_takes_all_devices_of_a_node_of_its_own(monkeypatch, launcher, more):
    set_all(monkeypatch, launcher(3, 4, 61500)[1] | more)
    assert hosts._launched(1) == (('127.0.0.1:61500', 4, 3), [])


@pytest.mark.usefixtures('no_launcher')
def test_a_launcher_that_jax_cannot_read_is_no_reason_to_run_alone(monkeypatch):
    set_all(monkeypatch, {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '3'})
    with pytest.raises(EnvironmentProblem, match=r'--process_id=\$OMPI_COMM_WORLD_RANK'):
        hosts._launched(1)
    set_all(monkeypatch, slurm(0, 4, 61500)[1] | {'SLURM_NTASKS': 'many'})
    with pytest.raises(EnvironmentProblem, match='--num_processes=1 if'):
        hosts._launched(1)


@pytest.mark.usefixtures('no_launcher')
def test_half_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'a:1')
    with (
        pytest.raises(ConfigError, match='got only --coordinator=a:1'),
        hosts.joined(*[None] * 3, 1),
    ):
        pass


def test_proxies_are_hidden_only_for_the_start(monkeypatch):
    monkeypatch.setenv('HTTPS_PROXY', 'x')
    with hosts._without_proxies():
        assert 'HTTPS_PROXY' not in os.environ
    assert os.environ['HTTPS_PROXY'] == 'x'
