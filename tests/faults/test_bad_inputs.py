"""Every bad input: one line that says what, where, expected, got and how to mend it; exit code 78;
and of the files that were there none is gone or has changed."""

import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple

import jax
import numpy as np
import pytest

from bigjax import cli, memory, seals
from bigjax.errors import EnvironmentProblem
from tests.faults.runs import ROOT, flip, largest, tree

TABLE = 'a,b,y\n' + ''.join(f'{i}.5,{i % 7}.25,{"nm"[i % 2]}\n' for i in range(60))

Case = namedtuple('Case', 'item make words')
CASES = []


def bad(item, words):
    """A function of a folder to a command line that must be refused with these words."""

    def add(make):
        CASES.append(Case(item, make, words))
        return make

    return add


def train(place, data, **sections):
    """The command of a tiny run on some data; every other field may be replaced."""
    config = {
        'model': {'name': 'mlp', 'widths': (8,)},
        'task': 'classification',
        'train': {'steps': 4, 'batch_size': 16, 'log_every': 1},
        'data': data,
        **sections,
    }
    (place / 'config.py').write_text(f'def get_config():\n    return {config!r}\n')
    return ['train', f'--config={place}/config.py', f'--workdir={place}/run']


def wine(place, *flags):
    return [*train(place, 'wine'), *flags]


def table(place, content):
    """On a CSV file."""
    (place / 'table.csv').write_bytes(content if isinstance(content, bytes) else content.encode())
    return train(place, {'name': 'csv', 'path': f'{place}/table.csv', 'target': 'y'})


def arrays(place, inputs, targets, **options):
    np.savez(place / 'arrays.npz', inputs=inputs, targets=targets)
    return train(place, {'name': 'npz', 'path': f'{place}/arrays.npz', **options})


def language(place, **sections):
    (place / 'text.txt').write_text('all is well that ends well\n' * 400)
    data = {'name': 'text', 'path': f'{place}/text.txt', 'sequence_length': 16}
    model = {'name': 'transformer', 'width': 16, 'layers': 1, 'heads': 2}
    sections = {'task': 'language_model', 'model': model, **sections}
    return train(place, {**data, 'cache_dir': f'{place}/cache'}, **sections)


def trained(place, whole):
    """A copy of a finished run, and the command that made it."""
    shutil.copytree(whole, place / 'run')
    (place / 'config.py').write_text(
        'from tests.train.tiny import BASE\n'
        "def get_config():\n    return {**BASE, 'checkpoint': {'every': 2, 'keep': 3}}\n"
    )
    return ['train', f'--config={place}/config.py', f'--workdir={place}/run']


NUMBERS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
LABELS = np.arange(64) % 4


@bad('config: unknown key', "unknown key config.train.stesp: did you mean 'steps'")
def _(place, whole):
    return wine(place, '--config.train.stesp=3')


@bad('config: unknown key, of a component', 'config.model.widht: did you mean .*width')
def _(place, whole):
    return wine(place, '--config.model.widht=3')


@bad('config: wrong type', r'config.train.batch_size: expected an int, got 2.5; set it with --')
def _(place, whole):
    return wine(place, '--config.train.batch_size=2.5')


@bad('config: not finite', r'config.optimizer.learning_rate: expected a finite number, got nan')
def _(place, whole):
    return wine(place, '--config.optimizer.learning_rate=nan')


@bad('config: not finite, of a component', r'config.model.dropout: expected a finite number')
def _(place, whole):
    return wine(place, '--config.model.dropout=1e999')


@bad('config: out of range', r'config.optimizer.learning_rate: expected a number > 0, got -1.0')
def _(place, whole):
    return wine(place, '--config.optimizer.learning_rate=-1.0')


@bad('config: batch and devices', r'batch_size: expected a multiple of 8 .* got 12; use 8 or 16')
def _(place, whole):
    return wine(place, '--config.train.batch_size=12')


@bad('config: batch and accumulation', r'batch_size=16 is not divisible by train.accumulation=3')
def _(place, whole):
    return wine(place, '--config.train.accumulation=3')


@bad('config: mesh and devices', r'config.mesh: expected .* = 8 devices, got .*fsdp=3.*that fit')
def _(place, whole):
    return wine(place, '--config.mesh.fsdp=3')


@bad('config: does not run', r'config.py line 3 does not run: ZeroDivisionError: division by')
def _(place, whole):
    (place / 'config.py').write_text('def get_config():\n    whole = 0\n    return 1 / whole\n')
    return ['train', f'--config={place}/config.py', f'--workdir={place}/run']


@bad('config: another in the run folder', r'another config \(seed: 0 there, 1 here\); choose')
def _(place, whole):
    return [*trained(place, whole), '--config.seed=1']


@bad('config: that of the run damaged', r'run/config.json is damaged: .*; bring it back')
def _(place, whole):
    command = trained(place, whole)
    os.truncate(place / 'run' / 'config.json', 100)
    return command


@bad('data: no file', r'table.csv: no such file; set config.data.path')
def _(place, whole):
    command = table(place, TABLE)
    (place / 'table.csv').unlink()
    return command


@bad('data: empty', r'table.csv: a header but no records')
def _(place, whole):
    return table(place, 'a,b,y\n')


@bad('data: empty, no byte of it', r'table.csv')
def _(place, whole):
    return table(place, '')


@bad('data: empty text', r'text.txt: the text is empty')
def _(place, whole):
    command = language(place)
    (place / 'text.txt').write_text('')
    return command


@bad('data: fewer than a batch', r'train split has 142 rows, fewer than .*=160; use a smaller')
def _(place, whole):
    return wine(place, '--config.train.batch_size=160')


@bad('data: label out of range', r'arrays.npz, train targets: record 2: expected an id in \[0, 1\]')
def _(place, whole):
    return arrays(place, NUMBERS, LABELS, num_classes=2)


@bad('data: label below zero', r'train targets: record 5: expected an id in \[0, 3\], got -1')
def _(place, whole):
    return arrays(place, NUMBERS, np.where(np.arange(64) == 5, -1, LABELS))


@bad('data: token out of range', r'train inputs: record 1: expected an id in \[0, 7\], got 9')
def _(place, whole):
    tokens = np.array([[1] * 6, [1, 9, 1, 1, 1, 1], *[[2] * 6] * 62])
    return arrays(place, tokens, LABELS, vocab_size=8)


@bad('data: NaN', r'train inputs: record 7, position 1: expected a finite number, got nan')
def _(place, whole):
    inputs = NUMBERS.copy()
    inputs[7, 1] = np.nan
    return arrays(place, inputs, LABELS)


@bad('data: inf', r'table.csv line 4: column a: expected a finite number, got "1e999"; if this')
def _(place, whole):
    return table(place, TABLE.replace('2.5,', '1e999,', 1))


@bad('data: wrong shape', r'inputs \[N, ...\] and targets \[N\] .*got \[64, 3\] and \[63\]')
def _(place, whole):
    return arrays(place, NUMBERS, LABELS[:63])


@bad('data: wrong dtype', r'train inputs: expected numbers, got dtype complex64')
def _(place, whole):
    return arrays(place, NUMBERS.astype(np.complex64), LABELS)


@bad('data: objects, which would be pickled', r'arrays.npz cannot be read: .*allow_pickle=False')
def _(place, whole):
    return arrays(place, np.array([[{}]] * 64, object), LABELS)


@bad('data: a record of another length', r'line 6: expected 3 values as in the header, got 4')
def _(place, whole):
    return table(place, TABLE.replace('4.5,', '4.5,0,', 1))


@bad('data: corrupt archive', r'arrays.npz is not a whole .npz file')
def _(place, whole):
    command = arrays(place, NUMBERS, LABELS)
    os.truncate(place / 'arrays.npz', 400)
    return command


@bad('data: corrupt record, file and offset', r'offset 216: the file ends here; its header')
def _(place, whole):
    for name, shape in (('images', (9, 5, 5)), ('labels', (9,))):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, '>u4').tobytes()
        (place / name).write_bytes(header + bytes(np.prod(shape)))
    os.truncate(place / 'images', 216)
    files = {'train': ('images', 'labels')}
    return train(place, {'name': 'idx', 'path': str(place), 'files': files})


@bad('data: corrupt records, more than may be skipped', r'3 of 12 are corrupt.*max_corrupt=2')
def _(place, whole):
    from PIL import Image

    for i in range(12):
        (place / 'images' / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(place / 'images' / 'ab'[i % 2] / f'{i}.png')
        if i % 4 == 0:
            os.truncate(place / 'images' / 'ab'[i % 2] / f'{i}.png', 30)
    data = {'name': 'image_folder', 'path': f'{place}/images', 'image_size': (4, 4)}
    return train(place, {**data, 'max_corrupt': 2, 'cache_dir': f'{place}/cache'})


@bad('data: corrupt JSON line', r'text.jsonl line 3: expected a JSON object')
def _(place, whole):
    (place / 'text.jsonl').write_text('{"text": "some"}\n' * 2 + '{"text": \n')
    return [*language(place), f'--config.data.path={place}/text.jsonl']


@bad('data: corrupt shard of the cache', r'00000.tokens.npy is damaged: .*; delete the folder')
def _(place, whole):
    command = language(place)
    assert cli.main(['data', 'tokenize', command[1]]) == 0
    flip(next((place / 'cache').rglob('*.tokens.npy')))
    return command


@bad('data: invalid UTF-8', r'text.txt: invalid UTF-8 at byte 34 \(0xff\); convert the file')
def _(place, whole):
    command = language(place)
    flip(place / 'text.txt', at=34)
    content = (place / 'text.txt').read_bytes()
    (place / 'text.txt').write_bytes(content[:34] + b'\xff' + content[35:])
    return command


@bad('data: invalid UTF-8 in a table', r'table.csv: invalid UTF-8 at byte 6 \(0xe9\)')
def _(place, whole):
    return table(place, b'a,b,y\n\xe9,1,n\n' + TABLE.encode())


@bad(
    'data: vocabulary and tokenizer',
    r'model.vocab_size: expected at least 256, .* got 100',
)
def _(place, whole):
    return [*language(place), '--config.model.vocab_size=100']


@bad('checkpoint: missing leaf', r'checkpoints/6 is of another model or optimizer: .* not in it')
def _(place, whole):
    command = trained(place, whole)
    (place / 'run' / 'config.json').unlink()
    return [*command, '--config.model.widths=16,16,16']


@bad('checkpoint: mismatched leaf', r'hidden_0/dense/bias has shape \(16,\) in it, \(8,\) here')
def _(place, whole):
    command = trained(place, whole)
    (place / 'run' / 'config.json').unlink()
    return [*command, '--config.model.widths=8,16']


@bad('checkpoint: checksum, of one asked for', r'no good checkpoint .* has other bytes than were')
def _(place, whole):
    trained(place, whole)
    flip(largest(place / 'run' / 'checkpoints' / '4'))
    return ['eval', f'--run={place}/run', '--checkpoint=4']


@bad('checkpoint: all bad', r'no good checkpoint in .*; bring one back from a copy, or start anew')
def _(place, whole):
    command = trained(place, whole)
    for folder in (place / 'run' / 'checkpoints').iterdir():
        flip(largest(folder))
    return command


@bad('checkpoint: newer format', r'manifest.json has format 2, of bigjax 9.0; expected at most 1')
def _(place, whole):
    command = trained(place, whole)
    path = place / 'run' / 'checkpoints' / '6' / 'manifest.json'
    body = seals.unseal(path.read_bytes()) | {'format': 2, 'bigjax': '9.0'}
    path.write_bytes(seals.seal(body))
    return command


@bad('checkpoint: no such step', r"no checkpoint '²'.*expected latest, best or one of 2, 4, 6")
def _(place, whole):
    trained(place, whole)
    return ['eval', f'--run={place}/run', '--checkpoint=²']


@bad('weights: pickled', r'model.bin: .bin files are pickles, which can run code, .* safetensors')
def _(place, whole):
    return [*wine(place), f'--config.init_from={place}/model.bin']


@pytest.mark.parametrize('case', CASES, ids=[case.item for case in CASES])
def test_refused_in_one_line(case, tmp_path, whole, capfd, monkeypatch):
    command = case.make(tmp_path, whole)
    before = tree(tmp_path)
    capfd.readouterr()
    assert cli.main(command) == 78
    refused(capfd.readouterr().err, case.words)
    unharmed(tmp_path, before)


def refused(said, words):
    (line,) = said.splitlines()
    assert line.startswith('bigjax: ')
    assert re.search(words, line), line


def unharmed(place, before):
    """But for the log of a run, which is added to, and its lock and environment."""
    after = tree(place)
    for path, content in before.items():
        if path.name == 'log.txt':
            assert after[path].startswith(content)
        elif path.name != 'env.json':
            assert after[path] == content, path


def elsewhere(command, **environment):
    """What a process of its own writes to stderr that is no log of a library."""
    done = subprocess.run(
        [sys.executable, '-m', 'bigjax.cli', *command],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert 'Traceback' not in done.stderr
    return ''.join(f'{line}\n' for line in done.stderr.splitlines() if line[:6] == 'bigjax')


ELSEWHERE = ('config: unknown key', 'data: NaN', 'checkpoint: all bad')


@pytest.mark.parametrize('case', [c for c in CASES if c.item in ELSEWHERE], ids=ELSEWHERE)
def test_refused_in_one_line_by_a_process(case, tmp_path, whole):
    command = case.make(tmp_path, whole)
    before = tree(tmp_path)
    refused(elsewhere(command), case.words)
    unharmed(tmp_path, before)


def test_an_accelerator_asked_for_and_absent(tmp_path, whole):
    command = trained(tmp_path, whole)
    before = tree(tmp_path)
    said = elsewhere(command, JAX_PLATFORMS='cuda')
    refused(said, r'no device for JAX_PLATFORMS=cuda .*; install .* or set JAX_PLATFORMS=cpu')
    unharmed(tmp_path, before)


def test_a_disk_without_room_for_a_checkpoint(tmp_path, whole, capfd, monkeypatch):
    command = trained(tmp_path, whole)
    before = tree(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=1000))
    assert cli.main(command) == 78
    refused(capfd.readouterr().err, r'has 0 MB of disk left; expected .* for a checkpoint')
    unharmed(tmp_path, before)


def test_out_of_memory_names_the_largest_arrays(tmp_path, capfd, monkeypatch):
    """A kernel of a terabyte: no machine of ours gives that much."""
    monkeypatch.setattr('bigjax.train.folder.require_space', lambda *_: None)
    assert cli.main(wine(tmp_path, '--config.model.widths=500000,500000')) == 78
    named = r'params/hidden_1/dense/kernel float32\[500000, 500000\] 1,000.000 GB'
    words = rf'out of memory: .* allocating 1000000000000 bytes.*{named}.*batch_size'
    refused(capfd.readouterr().err, words)


def test_out_of_memory_as_accelerators_say_it():
    """Their words, of a program that only they could refuse; and nothing else is taken for it."""
    said = 'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.'
    here = {'kernel': jax.device_put(np.zeros((1000, 250), np.float32))}
    named = r'8589934592 bytes.*kernel float32\[1000, 250\] 0.001 GB;'
    with pytest.raises(EnvironmentProblem, match=named), memory.accounted(here):
        raise jax.errors.JaxRuntimeError(said)
    alive = jax.device_put(np.zeros((12345, 678), np.int8))
    with pytest.raises(EnvironmentProblem, match=r'int8\[12345, 678\]'), memory.accounted():
        np.zeros(2**58, alive.dtype)
    with pytest.raises(jax.errors.JaxRuntimeError), memory.accounted():
        raise jax.errors.JaxRuntimeError('INTERNAL: another matter')
