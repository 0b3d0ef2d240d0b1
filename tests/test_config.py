import pytest

from bigjax import config as configs
from bigjax import config_file, schema
from bigjax.durations import Duration, Horizon
from bigjax.errors import ConfigError

MINIMAL = {'model': 'mlp', 'task': 'classification', 'data': 'digits', 'train': {'steps': 10}}

FILE = """
import ml_collections

def get_config(arg='small'):
    config = ml_collections.ConfigDict()
    if arg not in ('small', 'big'):
        raise ValueError(f'expected small or big, got {arg!r}')
    config.width = ml_collections.FieldReference(8 if arg == 'small' else 64)
    width = config.get_ref('width')
    del config.width
    config.model = {'name': 'mlp', 'widths': (4,)}
    config.model.first = width
    config.model.second = width * 2
    config.task = {'name': 'classification'}
    config.data = {'name': 'digits'}
    config.train = {'steps': 10}
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'c.py'
    path.write_text(FILE)
    return str(path)


@pytest.mark.parametrize(
    ('text', 'steps'),
    [
        (7, 7), ('7 steps', 7), ('2 epochs', 20), ('1 epoch', 10), ('80 examples', 10),
        ('1.6e3 tokens', 40), ('50%', 100), ('0 epochs', 0), ('0.01 epochs', 1),
    ],
)  # fmt: skip
def test_durations_become_steps(text, steps):
    horizon = Horizon(batch_size=8, examples_per_epoch=80, tokens_per_example=5, total_steps=200)
    assert horizon.steps(Duration.parse(text)) == steps
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


@pytest.mark.parametrize('text', ['5 parsecs', 2.5, True, '-3', '1.5 steps', '101%', '', 'e', None])
def test_durations_that_are_none(text):
    with pytest.raises(ValueError, match=r'steps|100'):
        Duration.parse(text)


def test_tokens_need_token_data():
    with pytest.raises(ConfigError, match='no tokens'):
        Horizon(8, 80).steps(Duration.parse('10 tokens'))


def test_file_argument_and_overrides(file):
    config = config_file.load(
        f'{file}:big', [('train.steps', '3 epochs'), ('optimizer.name', 'sgd'), ('seed', '5')]
    )
    assert config.model.options['first'] == 64
    assert config.model.options['second'] == 128
    assert str(config.train.steps) == '3 epochs'
    assert (config.optimizer.name, config.seed) == ('sgd', 5)


def test_an_override_moves_what_refers_to_it(file):
    config = config_file.load(file, [('model.widths', '16,8'), ('data.splits.val', '.1')])
    assert config.model.options['widths'] == (16, 8)
    assert config.data.splits == {'val': 0.1}


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ([('train.stesp', '3')], "unknown key config.train.stesp: did you mean 'steps'"),
        ([('trian.steps', '3')], "unknown key config.trian: did you mean 'train'"),
        ([('optimizer.learning_rate', 'nan')], 'config.optimizer.learning_rate: expected a finite'),
        ([('train.epochs', '3')], 'exactly one of train.steps and train.epochs'),
        ([('train.steps.x', '3')], 'steps is 10, which has no fields'),
        ([('train.accumulation', '3')], 'batch_size=128 is not divisible by train.accumulation=3'),
        ([('data.folds', '3')], 'folds and fold go together'),
        ([('mesh.fsdp', '-1')], 'config.mesh.fsdp: expected a number >= 1, got -1'),
        ([('train.steps', '5%')], 'cannot be a percentage'),
    ],
)
def test_bad_overrides(file, overrides, message):
    with pytest.raises(ConfigError, match=message):
        config_file.load(file, overrides)


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ('def get_config(:', 'does not run: SyntaxError'),
        ('import no_such_module', 'does not run: ModuleNotFoundError'),
        ('x = 1', r'has no get_config\(\)'),
    ],
)
def test_files_that_are_no_config(tmp_path, body, message):
    path = tmp_path / 'bad.py'
    path.write_text(body)
    with pytest.raises(ConfigError, match=message):
        config_file.load(str(path))


def test_wrong_argument(file):
    with pytest.raises(ConfigError, match="expected small or big, got 'huge'"):
        config_file.load(f'{file}:huge')
    with pytest.raises(ConfigError, match='no config file'):
        config_file.load('nowhere.py')


def test_round_trip_and_difference():
    config = configs.resolve(MINIMAL)
    plain = schema.to_dict(config)
    assert configs.resolve(plain) == config
    changed = configs.with_values(config, **{'train.steps': 20, 'optimizer.ema': 0.9})
    assert configs.difference(plain, schema.to_dict(changed)) == {
        'train.steps': ('10 steps', '20 steps'),
        'optimizer.ema': (None, 0.9),
    }
