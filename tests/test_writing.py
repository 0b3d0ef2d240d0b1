"""From a text file to a trained run, and from the run to text, as a user would."""

import json

import numpy as np
import pytest

import bigjax
from bigjax import cli
from bigjax.data import tokenizers
from bigjax.train import trained
from bigjax.writing import Text

LINES = [f'the {a} sees a {b}\n' for a in ('cat', 'dog', 'owl') for b in ('fish', 'bird', 'cow')]
CONFIG = """
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    config.model = {'name': 'transformer', 'layers': 1, 'width': 32, 'heads': 2}
    config.task = 'language_model'
    config.data = {
        'name': 'text', 'path': PATH, 'tokenizer': 'characters', 'sequence_length': 32,
        'cache_dir': CACHE,
    }
    config.optimizer = {'learning_rate': 1e-2}
    config.train = {'steps': 120, 'batch_size': 16, 'log_every': 50}
    config.checkpoint = {'every': 60}
    return config
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Holds the text, a config, and a trained run."""
    folder = tmp_path_factory.mktemp('writing')
    (folder / 'text.txt').write_text(''.join(LINES) * 60)
    values = {'PATH': repr(str(folder / 'text.txt')), 'CACHE': repr(str(folder / 'cache'))}
    text = CONFIG
    for name, value in values.items():
        text = text.replace(name, value)
    (folder / 'config.py').write_text(text)
    flags = [f'--config={folder / "config.py"}', f'--workdir={folder / "run"}']
    assert cli.main(['train', *flags]) == 0
    return folder


def generate(folder, capfd, *flags):
    capfd.readouterr()
    code = cli.main(['generate', f'--run={folder / "run"}', *flags])
    return code, capfd.readouterr()


def test_a_trained_run_writes_what_it_has_read(folder, capfd):
    flags = ('--prompt=the cat', '--temperature=0', '--max_new_tokens=12')
    code, said = generate(folder, capfd, *flags)
    assert code == 0
    assert said.out.startswith('the cat sees a ')
    assert len(said.out.rstrip('\n')) <= len('the cat') + 12


def test_samples_differ_and_seeds_repeat(folder, capfd):
    flags = ('--prompt=the', '--num_samples=3', '--temperature=1.5', '--max_new_tokens=20')
    first, again = (generate(folder, capfd, *flags)[1].out for _ in range(2))
    assert first == again
    assert first != generate(folder, capfd, *flags, '--seed=5')[1].out
    assert len(set(first.split('----------------\n'))) == 3


def test_a_stop_is_not_shown(folder, capfd):
    flags = ('--prompt=the dog', '--temperature=0', '--stop=a ', '--max_new_tokens=40')
    assert generate(folder, capfd, *flags)[1].out == 'the dog sees \n'


def test_prompts_of_a_file_and_of_flags(folder, capfd):
    (folder / 'prompt.txt').write_text('the owl')
    flags = (f'--prompt_file={folder / "prompt.txt"}', '--prompt=a', '--max_new_tokens=4')
    out = generate(folder, capfd, *flags)[1].out
    assert out.startswith('a')
    assert '\nthe owl' in out


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--prompt=#'], "'#' is not in the vocabulary"),
        ([], 'no token to begin with'),
        (['--prompt=a', '--top_p=2'], 'expected a number >= 0 and <= 1'),
        (['--prompt=a', '--num_samples=0'], '--num_samples: expected a positive number'),
        (['--prompt_file=nowhere'], 'cannot read nowhere'),
        (['--prompt=a', '--checkpoint=7'], "no checkpoint '7'"),
    ],
)
def test_mistakes_are_one_line(folder, capfd, flags, message):
    code, said = generate(folder, capfd, *flags)
    assert code == 78
    assert message in said.err
    assert said.err.count('\n') == 1


def test_the_tokenizer_stays_with_the_run(folder, capfd):
    kept = tokenizers.load(folder / 'run' / 'tokenizer')
    assert kept.decode(kept.encode('the cow')) == 'the cow'
    flags = [f'--config={folder / "config.py"}', f'--workdir={folder / "run"}']
    (folder / 'other.txt').write_text(''.join(LINES).upper() * 60)
    other = f'--config.data.path={folder / "other.txt"}'
    assert cli.main(['eval', f'--run={folder / "run"}', '--split=val', other]) == 78
    assert 'is another tokenizer' in capfd.readouterr().err
    begin = [f'--config.init_from.run={folder / "run"}', other]
    flags = [flags[0], f'--workdir={folder / "second"}', *begin]
    assert cli.main(['train', *flags]) == 78
    assert 'is another tokenizer' in capfd.readouterr().err


def test_a_stride_gives_every_token_more_context(folder, capfd):
    def loss(*flags):
        assert cli.main(['eval', f'--run={folder / "run"}', '--split=val', *flags]) == 0
        return json.loads((folder / 'run/evaluation/val.json').read_text())['metrics']['loss']

    assert loss('--config.data.stride=4') < loss()


def test_a_text_holds_back_what_may_not_be_shown():
    text = Text(tokenizers.Bytes(), ['stop'])
    euro = '€'.encode()
    text.add(list(b'a') + list(euro[:2]))
    assert text.unseen() == ''  # may be the beginning of a stop, or of a character
    text.add([euro[2], *b' and st'])
    assert text.unseen() == 'a€ and'
    text.add(list(b'op here'))
    assert text.done
    assert text.rest() == ' '
    assert text.text == 'a€ and '


def test_a_run_too_short_to_write_in_still_ends_well(folder):
    flags = [f'--config={folder / "config.py"}', f'--workdir={folder / "short"}']
    short = ['--config.data.sequence_length=8', '--config.train.steps=2']
    assert cli.main(['train', *flags, *short]) == 0
    outcome = json.loads((folder / 'short/evaluation/val.json').read_text())
    assert outcome['samples'] == []


def test_adapters_train_on_a_run_and_are_folded_in_on_the_way_out(folder, capfd):
    adapted, out = folder / 'adapted', folder / 'out'
    flags = [f'--config={folder / "config.py"}', f'--workdir={adapted}', '--config.lora.rank=4']
    begin = [f'--config.init_from.run={folder / "run"}', '--config.train.steps=20']
    assert cli.main(['train', *flags, *begin]) == 0
    assert cli.main(['export', f'--run={adapted}', '--to=hf', f'--out={out}']) == 0
    loaded = trained.load(adapted)
    module, params, tokenizer = bigjax.interop.load(out)
    tokens = np.array([tokenizer.encode('the cat sees')])
    want, _ = loaded.model.apply({'params': loaded.params}, tokens)
    np.testing.assert_allclose(module.apply({'params': params}, tokens), want, atol=1e-4)
    base = trained.load(folder / 'run')
    before, _ = base.model.apply({'params': base.params}, tokens)
    assert np.abs(want - before).max() > 1e-2  # the adapters have learned something
    frozen = loaded.params['block_0']['mlp']['dense']['kernel']
    np.testing.assert_array_equal(frozen, base.params['block_0']['mlp']['dense']['kernel'])
