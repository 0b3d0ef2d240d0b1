"""Anything at all at the front doors: it is right, by an oracle that stands here, or it is refused
in one line. No traceback, and no success in silence.

The examples are the same at every run; the slow ones are many.
"""

import copy
import csv
import io
import json
import math
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigjax import cli
from bigjax.config import DataConfig
from bigjax.data import csv as csv_data
from bigjax.data.core import everything
from bigjax.data.load import load as load_data
from bigjax.errors import BigjaxError
from bigjax.train import checkpoint
from bigjax.train.build import build
from tests.faults.runs import tree
from tests.train.tiny import BASE


def at(few, many):
    """How often: in every run of the tests, and in the long one."""
    return pytest.mark.parametrize('count', [few, pytest.param(many, marks=pytest.mark.slow)])


def throw(count, check):
    """Calls `check` with a source of random choices."""
    health = list(HealthCheck)
    fixed = settings(
        max_examples=count, derandomize=True, database=None, suppress_health_check=health
    )
    fixed(given(st.data())(check))()


def succeeds(argv, capfd):
    """Whether the command does; it may also leave with 78 and one line, and no other way."""
    capfd.readouterr()
    code = cli.main(argv)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith('bigjax: ')]
    assert code in (0, 78)
    assert len(said) == (code == 78)
    return code == 0


def accepted(call):
    """What `call` returns, or None where it is refused."""
    try:
        return call()
    except BigjaxError as error:
        refusal = error
    assert refusal.exit_code == 78
    assert str(refusal)
    return None


# Configs


def is_int(value, low, high=math.inf):
    return type(value) is int and low <= value <= high


def is_number(value, low=0.0, high=math.inf):
    """Finite, as a float32."""
    high = min(high, np.finfo(np.float32).max)
    return type(value) in (int, float) and low <= value <= high


def are_widths(value):
    return is_int(value, 1) or (type(value) is list and all(is_int(one, 1) for one in value))


FIELDS = {
    'train.steps': lambda v: is_int(v, 1),
    'train.batch_size': lambda v: is_int(v, 8, 142) and v % 8 == 0,
    'train.accumulation': lambda v: is_int(v, 1, 2) and v in (1, 2),
    'optimizer.learning_rate': lambda v: is_number(v) and v > 0,
    'optimizer.weight_decay': is_number,
    'optimizer.name': lambda v: v in ('adamw', 'sgd', 'adam', 'lion'),
    'model.widths': are_widths,
    'model.dropout': lambda v: is_number(v, 0, 1) and v < 1,
    'model.activation': lambda v: v in ('relu', 'gelu', 'tanh'),
    'data.split_seed': lambda v: is_int(v, 0),
    'task.l2': is_number,
    'mesh.fsdp': lambda v: v is None or v in (1, 2, 4, 8),
    'precision.compute': lambda v: v in ('float32', 'bfloat16', 'float16'),
    'checkpoint.keep': lambda v: is_int(v, 1),
    'seed': lambda v: is_int(v, 0),
}
"""Of some fields: whether a value may stand there in a run of BASE on eight devices."""

SECTIONS = sorted({key.split('.')[0] for key in FIELDS if '.' in key})
REQUIRED = ('model', 'task', 'data', 'train')

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 150),
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**32, 2**63, 2**64, 1e308, -0.0]),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.sampled_from(['adam', 'sgd', 'bfloat16', 'gelu', '3', 'nan', '1e5 epochs', '5%']),
)
keys = st.one_of(st.text(max_size=6), st.integers(), st.none())
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=5,
)


def places(values):
    """Sections of a config of which BASE gives some by name alone."""
    return {name: dict(values.get(name, {})) for name in SECTIONS}


def write(place, values):
    path = place / 'config.py'
    head = 'from math import inf, nan\n'
    path.write_text(f'{head}def get_config():\n    return {values!r}\n', errors='surrogatepass')
    return ['describe', f'--config={path}']


@at(80, 800)
def test_fields_of_a_config(count, tmp_path, capfd):
    def check(data):
        key, value = data.draw(st.sampled_from(sorted(FIELDS))), data.draw(anything)
        values = copy.deepcopy(BASE)
        *section, name = key.split('.')
        (values.setdefault(section[0], {}) if section else values)[name] = value
        may = FIELDS[key](value if type(value) is not tuple else list(value))
        assert succeeds(write(tmp_path, values), capfd) <= may, (key, value)

    throw(count, check)


@at(40, 600)
def test_sections_and_keys_of_a_config(count, tmp_path, capfd):
    """What is dropped has a default, or is missed; what nobody knows is refused."""

    def check(data):
        values = copy.deepcopy(BASE)
        harm = data.draw(st.sampled_from(['drop', 'unknown', 'replace', 'drop field', 'root']))
        name = data.draw(st.sampled_from(sorted(BASE)))
        may = False
        if harm == 'drop':
            del values[name]
            may = name not in REQUIRED
        elif harm == 'drop field':
            field = data.draw(st.sampled_from(sorted(values[name])))
            del values[name][field]
            may = field not in ('steps',) and (field != 'name' or name == 'optimizer')
        elif harm == 'unknown':
            section = values[name] if data.draw(st.booleans()) else values
            known = {*FIELDS, *(field for key in FIELDS for field in key.split('.'))}
            unknown = data.draw(keys.filter(lambda key: key not in {*known, *KNOWN}))
            section[unknown] = data.draw(anything)
        elif harm == 'replace':
            values[name] = data.draw(anything.filter(lambda value: not isinstance(value, dict)))
            may = isinstance(values[name], str)  # which stands for the first field of it
        else:
            values = data.draw(anything)
        assert succeeds(write(tmp_path, values), capfd) <= may, (harm, name, values)

    throw(count, check)


KNOWN = {
    'model', 'task', 'data', 'eval', 'sinks', 'lora', 'init_from', 'epochs', 'every', 'best',
    'metrics', 'clip', 'ema', 'groups', 'decay', 'schedule', 'options', 'fold', 'folds', 'norm',
    'l1', 'splits', 'augment', 'prefetch', 'b1', 'b2', 'eps', 'precision', 'optimizer', 'mesh',
}  # fmt: skip


@at(40, 600)
def test_python_of_a_config(count, tmp_path, capfd):
    """A file with some characters gone or changed is what Python itself makes of it, or refused."""
    whole = f'"""A run."""\n\n\ndef get_config():\n    return {BASE!r}\n'

    def check(data):
        start = data.draw(st.integers(0, len(whole)))
        stop = start + data.draw(st.integers(0, 12))
        broken = whole[:start] + data.draw(st.text(max_size=4)) + whole[stop:]
        (tmp_path / 'config.py').write_bytes(broken.encode('utf-8', 'surrogatepass'))
        if succeeds(['describe', f'--config={tmp_path}/config.py'], capfd):
            made = {}
            exec(broken, made)
            assert made['get_config']().keys() <= {*BASE, *KNOWN}

    throw(count, check)


@at(40, 600)
def test_overrides_of_a_config(count, tmp_path, capfd):
    command = write(tmp_path, BASE)

    def check(data):
        key = data.draw(st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=8)))
        value = data.draw(st.one_of(st.text(max_size=8), scalars.map(str)))
        flag = f'--config.{key.replace("=", "")}={value}'
        if succeeds([*command, flag], capfd):
            assert key in FIELDS

    throw(count, check)


# Tables

HEAD = ['a', 'b', 'y']
MISSING = ('', 'na', 'n/a', 'nan', 'null', '?')
cells = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.integers(-9, 9).map(str),
    st.sampled_from(['NaN', '', '?', '1e400', '-inf', '"', '""', '"x', 'x"y', '0x1f', '1_0', '٣']),
    st.text(max_size=5),
)


def rows_of(content):
    """Records as Python's csv reads them; blank lines are none."""
    lines = io.StringIO(content.decode('utf-8-sig'), newline='')
    return [row for row in csv.reader(lines) if row]


def agrees(config, found, content):
    """Whether a data set is what Python reads in the file, all of it finite or missing."""
    head, *records = rows_of(content)
    head = [name.strip() for name in head]
    raw = everything(found.sources['train'])
    assert len(records) == len(raw['targets'])
    assert len(set(head)) == len(head)
    assert all(len(record) == len(head) for record in records)
    for name, column in {**raw['inputs'], config.target: raw['targets']}.items():
        texts = [record[head.index(name)].strip() for record in records]
        values = [None if value.lower() in MISSING else value for value in texts]
        if column.dtype.kind != 'f':  # of categories: the same where the texts are
            pairs = set(zip([value or '' for value in values], column.tolist(), strict=True))
            assert len(pairs) == len({text for text, _ in pairs}) == len({id for _, id in pairs})
            continue
        for value, number in zip(values, column.tolist(), strict=True):
            if value is None:
                assert math.isnan(number)
                assert name != config.target
            else:
                assert math.isfinite(number)
                assert number == pytest.approx(float(value), rel=1e-6)


@at(100, 2000)
def test_tables(count, tmp_path):
    path = tmp_path / 'table.csv'

    def check(data):
        table = [[f'{i}.5', f'{i % 5}', f'{i % 3}'] for i in range(24)]
        for _ in range(data.draw(st.integers(0, 4))):
            row, column = data.draw(st.integers(0, 23)), data.draw(st.integers(0, 2))
            harm = data.draw(st.sampled_from(['cell', 'longer', 'shorter', 'blank']))
            if harm == 'cell' and column < len(table[row]):
                table[row][column] = data.draw(cells)
            elif harm == 'longer':
                table[row] = [*table[row], '1']
            elif harm == 'shorter':
                table[row] = table[row][:-1]
            else:
                table[row] = []
        ending = data.draw(st.sampled_from(['\n', '\r\n']))
        encoding = data.draw(st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'latin-1']))
        written = ending.join(','.join(row) for row in [HEAD, *table]) + ending
        content = written.encode(encoding, 'replace')
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(content)))
            content = content[:at] + data.draw(st.binary(max_size=3)) + content[at + 1 :]
        path.write_bytes(content)
        config = csv_data.Config(str(path), 'y')
        found = accepted(lambda: csv_data.load(config))
        if found is not None:
            agrees(config, found, content)
        options = {'path': str(path), 'target': 'y'}
        splits = accepted(lambda: load_data(DataConfig('csv', options=options)))
        if splits is not None:
            assert found is not None
            for source in splits.sources.values():
                assert np.isfinite(everything(source)['inputs']).all()

    throw(count, check)


@at(40, 2000)
def test_bytes_for_a_table(count, tmp_path):
    path = tmp_path / 'table.csv'

    def check(data):
        content = data.draw(st.binary(max_size=60))
        path.write_bytes(data.draw(st.sampled_from([b'', b'a,y\n'])) + content)
        config = csv_data.Config(str(path), 'y')
        found = accepted(lambda: csv_data.load(config))
        if found is not None:
            agrees(config, found, path.read_bytes())

    throw(count, check)


# Files that we wrote, and others changed


@contextmanager
def harmed(data, files, times=1):
    """One file of `files` (path -> content), or a few, others than they were, until the end."""
    paths = st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=times, unique=True)
    chosen = {path: changed(data, path, files[path]) for path in data.draw(paths)}
    try:
        for path, content in chosen.items():
            path.unlink() if content is None else path.write_bytes(content)
        yield [path for path, content in chosen.items() if content != files[path]]
    finally:
        for path in chosen:
            path.write_bytes(files[path])


def changed(data, path, content):
    """Another content for a file, or None for none."""
    kinds = ['flip', 'truncate', 'append', 'remove', 'random', 'empty', 'edit']
    kind = data.draw(st.sampled_from(kinds))
    at = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == 'remove':
        return None
    if kind == 'truncate':
        return content[:at]
    if kind == 'append':
        return content + data.draw(st.binary(min_size=1, max_size=9))
    if kind == 'random':
        return content[:at] + data.draw(st.binary(max_size=9)) + content[at + 9 :]
    if kind == 'edit' and path.suffix == '.json' and is_whole(content):
        return edited(data, json.loads(content))
    if kind == 'empty' or not content:
        return b''
    bit = 1 << data.draw(st.integers(0, 7))
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


def is_whole(content):
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def edited(data, plain):
    """JSON with another value in it somewhere."""
    place, above, key = plain, None, None
    while isinstance(place, dict | list) and place and (above is None or data.draw(st.booleans())):
        choices = sorted(place) if isinstance(place, dict) else range(len(place))
        above, key = place, data.draw(st.sampled_from(choices))
        place = place[key]
    value = data.draw(anything.filter(lambda value: is_json(value)))
    if above is None:
        plain = value
    else:
        above[key] = value
    return json.dumps(plain).encode()


def is_json(value):
    try:
        json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError):
        return False
    return True


def tokens_of(config):
    """All rows of all splits, as they are trained on."""
    splits = load_data(config)
    return {name: everything(source) for name, source in splits.sources.items()}


@pytest.mark.parametrize('tokenizer', ['bytes', 'characters'])
@at(60, 2000)
def test_token_shards(count, tmp_path, tokenizer, monkeypatch):
    """What is read of a cache that was harmed are the tokens that were there, or nothing."""
    monkeypatch.setattr('bigjax.data.corpus.SHARD', 1500)  # several
    (tmp_path / 'text.txt').write_text('all is well that ends well\n' * 200)
    options = {'path': f'{tmp_path}/text.txt', 'sequence_length': 16, 'tokenizer': tokenizer}
    config = DataConfig('text', options={**options, 'cache_dir': f'{tmp_path}/cache'})
    whole, files = tokens_of(config), tree(tmp_path / 'cache')

    def check(data):
        with harmed(data, files, times=2):
            found = accepted(lambda: tokens_of(config))
        if found is not None:
            jax.tree.map(np.testing.assert_array_equal, found, whole)

    throw(count, check)


@at(40, 600)
def test_rows_in_the_cache(count, tmp_path):
    """The same of texts with labels, whose rows are kept in another way."""
    lines = [f'{"good" if i % 2 else "bad"} text {i},{i % 2}\n' for i in range(40)]
    (tmp_path / 'table.csv').write_text('text,label\n' + ''.join(lines))
    options = {'path': f'{tmp_path}/table.csv', 'cache_dir': f'{tmp_path}/cache'}
    config = DataConfig('labelled_text', options={**options, 'sequence_length': 16})
    whole, files = tokens_of(config), tree(tmp_path / 'cache')

    def check(data):
        with harmed(data, files):
            found = accepted(lambda: tokens_of(config))
        if found is not None:
            jax.tree.map(np.testing.assert_array_equal, found, whole)

    throw(count, check)


def step_of(run, path):
    """Of which checkpoint of a run a file is."""
    part = path.relative_to(run).parts
    return int(part[1]) if part[0] == 'checkpoints' else None


@at(40, 400)
def test_checkpoints(count, run, config, caplog):
    """A harmed one is never the one that is used; the log names it; what is used is as it was."""
    ran = build(config)

    def load(which='latest'):
        with jax.set_mesh(ran.mesh), checkpoint.open_checkpoints(run, config.checkpoint) as there:
            step = checkpoint.pick(there, which, None)
            return step, checkpoint.restore_variables(there, step, ran.abstract)

    saved = {step: load(str(step))[1] for step in (2, 4, 6)}
    files = tree(run / 'checkpoints')

    def check(data):
        caplog.clear()
        with harmed(data, files, times=4) as paths:
            found = accepted(load)
        bad = {step_of(run, path) for path in paths}
        assert (found is None) == (bad == saved.keys())
        if found is not None:
            step, variables = found
            assert step == max(saved.keys() - bad)
            for newer in (newer for newer in bad if newer > step):
                assert f'checkpoint {newer} is not used' in caplog.text
            jax.tree.map(np.testing.assert_array_equal, variables, saved[step])

    throw(count, check)


@at(6, 60)
def test_a_run_that_was_harmed(count, run, capfd, caplog):
    """`bigjax eval` of it gives the numbers of a checkpoint that is whole, or 78."""
    place = run / 'evaluation' / 'test.json'
    numbers = {}
    for step in (2, 4, 6):
        assert cli.main(['eval', f'--run={run}', f'--checkpoint={step}']) == 0
        numbers[step] = json.loads(place.read_text())
    files = tree(run)
    inner = {path: content for path, content in files.items() if step_of(run, path)}
    outer = {path: content for path, content in files.items() if path not in inner}

    def check(data):
        caplog.clear()
        with harmed(data, data.draw(st.sampled_from([outer, inner]))) as paths:
            if succeeds(['eval', f'--run={run}'], capfd):
                found = json.loads(place.read_text())
                bad = {step_of(run, path) for path in paths}
                assert found['step'] == max(numbers.keys() - bad)
                assert found == numbers[found['step']]
                assert (6 in bad) == ('checkpoint 6 is not used' in caplog.text)

    throw(count, check)
