"""CSV tables: columns of every kind, statistics of the training rows, faults by line."""

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bigjax import schema
from bigjax.config import DataConfig
from bigjax.data.core import everything
from bigjax.data.load import load
from bigjax.errors import ConfigError, DataError

HALVES = {'train': 'train[:50%]', 'test': 'train[50%:]'}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes data.csv and loads it: the first half trains, the second tests."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text, target='y', encoding='utf-8', **options):
        (tmp_path / 'data.csv').write_bytes(
            text if isinstance(text, bytes) else text.encode(encoding)
        )
        config = {'name': 'csv', 'path': 'data.csv', 'target': target, 'splits': HALVES}
        return load(schema.build(DataConfig, config | options, 'config.data'))

    return write_and_load


def rows(splits, split='train'):
    return everything(splits.sources[split])


def lines(*records):
    return '\n'.join(records) + '\n'


def numbers_with_gaps(rng, num_rows, missing):
    numbers = rng.normal(3, 10, size=(num_rows, 3))
    numbers[:, 2] = 7  # constant
    numbers[rng.random(num_rows) < missing, 0] = np.nan
    return numbers


@pytest.mark.parametrize('impute', ['mean', 'median'])
@pytest.mark.parametrize('indicators', [False, True])
def test_numbers_are_imputed_and_standardised_as_by_scikit_learn(table, impute, indicators):
    rng = np.random.default_rng(0)
    numbers = numbers_with_gaps(rng, 60, 0.3)
    gaps = ['', 'NA', 'nan', ' ? ', 'NULL', 'n/a']
    text = ['a,b,c,y'] + [
        ','.join(rng.choice(gaps) if np.isnan(x) else repr(float(x)) for x in row) + f',{i % 2}'
        for i, row in enumerate(numbers)
    ]
    splits = table(lines(*text), impute=impute, missing_indicators=indicators)

    imputer = SimpleImputer(strategy=impute)
    pipeline = make_pipeline(imputer, StandardScaler()).fit(numbers[:30])
    for split, part in (('train', numbers[:30]), ('test', numbers[30:])):
        expected = pipeline.transform(part)
        if indicators:
            expected = np.insert(expected, 1, np.isnan(part[:, 0]), axis=1)
        inputs = rows(splits, split)['inputs']
        assert inputs.dtype == np.float32
        np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)
    names = ('a', 'a is missing', 'b', 'c') if indicators else ('a', 'b', 'c')
    assert splits.spec.feature_names == names
    assert splits.spec.inputs.shape == (len(names),)


def test_categories_are_those_of_the_training_rows(table):
    colors = ['red', 'blue', '', 'red', 'green', 'blue', '?', 'red']
    text = ['size,color,y', *(f'{i},{color},{i % 2}' for i, color in enumerate(colors))]
    splits = table(lines(*text))
    assert splits.spec.feature_names == ('size', 'color=blue', 'color=red', 'color unknown')
    encoder = OneHotEncoder(categories=[['blue', 'red']], handle_unknown='ignore')
    for split, part in (('train', colors[:4]), ('test', colors[4:])):
        known = encoder.fit_transform([[color] for color in part]).toarray()
        unknown = 1 - known.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(
            rows(splits, split)['inputs'][:, 1:], np.concatenate([known, unknown], axis=1)
        )
    assert rows(splits, 'test')['inputs'][0, 3] == 1  # green was never seen


def test_nothing_of_the_training_inputs_depends_on_the_test_rows(table):
    training = ['1.5,red,0', ',blue,1', '4,red,1', '-2,,0']
    a = table(lines('x,c,y', *training, '100,red,0', '-50,aqua,1', ',zinc,0', '7,blue,1'))
    b = table(lines('x,c,y', *training, '1e6,mint,1', '0,red,0', '1,?,1', '2,violet,0'))
    np.testing.assert_array_equal(rows(a)['inputs'], rows(b)['inputs'])
    assert a.spec == b.spec
    assert not np.array_equal(rows(a, 'test')['inputs'], rows(b, 'test')['inputs'])


@pytest.mark.parametrize(
    ('values', 'options', 'targets', 'class_names'),
    [
        (['10', '9', '9', '10'], {}, [1, 0, 0, 1], ('9', '10')),
        (['no', 'yes', 'no', 'Yes'], {}, [1, 2, 1, 0], ('Yes', 'no', 'yes')),
        (['1.5', '2', '-1e3', '.5'], {}, [1.5, 2, -1000, 0.5], ()),
        (['1', '2', '3', '9'], {'target_type': 'numbers'}, [1, 2, 3, 9], ()),
        (['0.0', '1.0', '1.0', '0.0'], {'target_type': 'classes'}, [0, 1, 1, 0], ('0.0', '1.0')),
    ],
)
def test_targets_are_classes_or_numbers(table, values, options, targets, class_names):
    splits = table(lines('x,y', *(f'{i},{value}' for i, value in enumerate(values))), **options)
    ours = np.concatenate([rows(splits)['targets'], rows(splits, 'test')['targets']])
    np.testing.assert_array_equal(ours, targets)
    assert ours.dtype == splits.spec.targets.dtype == (np.int32 if class_names else np.float32)
    assert splits.spec.class_names == class_names
    assert splits.spec.num_classes == (len(class_names) or None)


def test_the_kind_of_a_column_can_be_given_and_columns_ignored(table):
    text = lines('id,zip,x,y', *(f'{i},{i % 2},{i * i},{i % 3}' for i in range(12)))
    splits = table(text, categorical=('zip',), ignore=('id',))
    assert splits.spec.feature_names == ('zip=0', 'zip=1', 'zip unknown', 'x')


def test_what_real_files_hold(table):
    """A byte order mark, CRLF, blank lines, quotes, delimiters and newlines in quotes, blanks."""
    text = (
        '\ufeff"x";"long, name";y\r\n\r\n1; a ;no\r\n'
        '2;"b;\nb";no\r\n\r\n3;"say ""a""";yes\r\n4;a;yes'
    )
    splits = table(text, delimiter=';')
    assert splits.spec.feature_names == (
        'x', 'long, name=a', 'long, name=b;\nb', 'long, name unknown',
    )  # fmt: skip
    np.testing.assert_array_equal(rows(splits, 'test')['inputs'][:, 1:], [[0, 0, 1], [1, 0, 0]])


def test_folds_are_stratified_by_the_target_column(table):
    text = lines('x,y', *(f'{i},{"rare" if i % 10 == 0 else "common"}' for i in range(100)))
    for fold in range(5):
        splits = table(text, splits={}, folds=5, fold=fold)
        assert np.bincount(rows(splits, 'test')['targets']).tolist() == [18, 2]


FINE = ['1,2,0', '3,4,1', '5,6,0', '7,8,1']


@pytest.mark.parametrize(
    ('text', 'options', 'message'),
    [
        (
            lines('a,b,y', *FINE, 'x1,2,0'),
            {},
            'line 6: column a: expected a finite number, got "x1"',
        ),
        (
            lines('a,b,y', '1,"two\nlines",0', '', '1,c,0', 'x,d,1', '1,e,1'),
            {},
            'line 6: column a: expected a finite number, got "x"',
        ),
        (lines('a,b,y', *FINE, '1,inf,0'), {}, 'line 6: column b: expected a finite number'),
        (lines('a,b,y', *FINE, '1,1e999,0'), {}, 'line 6: column b: expected a finite number'),
        (
            lines('a,b,y', 'u,1,0', 'v,2,1', 'w,3,0'),
            {'numeric': ('a',)},
            'line 2: column a: expected a finite number, got "u"',
        ),
        (lines('a,b,y', *FINE, '1,2'), {}, 'line 6: expected 3 values as in the header, got 2'),
        (lines('a,b,y', *FINE, '1,2,3,4'), {}, 'line 6: expected 3 values .* got 4'),
        (lines('a,b,y', *FINE, '1,2,NA'), {}, 'line 6: column y: expected a value'),
        (
            lines('a,b,y', '1,2,.5', '1,2,.7', '1,2,cat'),
            {},
            'line 4: column y: expected a finite number, got "cat"; .* set config.data.target_type',
        ),
        (lines('a,a ,y', *FINE), {}, 'line 1: each column needs a name of its own, got a, a, y'),
        (lines('a,,y', *FINE), {}, 'line 1: each column needs a name of its own, got a, , y'),
        (lines('a,b,y', '1,2,x', '3,4,x'), {}, 'every target is x'),
        (lines('a,b,y', *(f'n{i},1,{i % 2}' for i in range(300))), {}, 'column a has 300 diff'),
        (lines('a,b,y', ',2,1', 'NA,2,0', '1,1,1', '2,1,0'), {}, 'column a has no value in the tr'),
        (lines('a,b,y'), {}, 'a header but no records'),
        ('', {}, 'not a CSV table: Empty CSV file'),
        (lines('y', '1', '0'), {}, 'no columns are left'),
        (b'a,b,y\n1,caf\xe9,0\n', {}, r'invalid UTF-8 at byte 11 \(0xe9\)'),
        (b'a,caf\xe9,y\n1,2,0\n', {}, r'invalid UTF-8 at byte 5 \(0xe9\)'),
    ],
)
def test_faults_of_the_file_are_told_by_line(table, text, options, message):
    with pytest.raises(DataError, match=message) as caught:
        table(text, **options)
    assert '\n' not in str(caught.value)
    assert str(caught.value).startswith('data.csv line' if message.startswith('line') else '')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target': 'Y'}, "config.data.target: no column 'Y' in the file; known: a, b, y"),
        ({'ignore': ('aa',)}, "config.data.ignore: no column 'aa'"),
        ({'numeric': ('a',), 'ignore': ('a',)}, "'a' is in config.data.numeric and in .ignore"),
        ({'delimiter': 'x'}, 'config.data.delimiter: expected one of'),
        ({'impute': 'mode'}, 'config.data.impute: expected one of mean, median'),
    ],
)
def test_names_that_do_not_fit_the_file(table, options, message):
    with pytest.raises(ConfigError, match=message):
        table(lines('a,b,y', *FINE), **options)


def test_a_missing_file(table):
    with pytest.raises(DataError, match=r'nowhere\.csv: no such file; set config\.data\.path'):
        table('', path='nowhere.csv')
