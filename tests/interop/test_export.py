"""Models out and in again; what transformers makes of them is in test_parity.py."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bigjax import cli, interop
from bigjax.errors import ConfigError
from bigjax.interop import tensors, weights
from bigjax.interop.export import Trained, export
from bigjax.models.transformer import Config
from bigjax.train import trained

HUB = Path(__file__).parents[1] / 'golden' / 'hub'
NAMES = ('gpt2', 'bert', 'llama', 'llama_tied', 'mistral', 'qwen3')


def fresh(outputs=96, **options):
    config = Config(width=32, heads=4, vocab_size=96, max_length=24, **options)
    module = weights.make_module(config, outputs)
    model = weights.transformer.as_model(module, jax.ShapeDtypeStruct((1, 1), np.int32))
    return Trained(module, jax.device_get(model.init(jax.random.key(0))['params']), None)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_a_hub_folder_comes_back_as_it_was(tmp_path, name, scan):
    pretrained = interop.open_pretrained(HUB / name)
    module = weights.make_module(weights.model_config(pretrained, scan=scan), 96)
    params = weights.read_all(pretrained, module)
    export(Trained(module, params, pretrained.tokenizer()), tmp_path / 'out', 'hf')
    again = interop.open_pretrained(tmp_path / 'out')
    assert again.options == pretrained.options
    assert again.tokenizer().encode('Hi') == pretrained.tokenizer().encode('Hi')
    jax.tree.map(np.testing.assert_array_equal, params, weights.read_all(again, module))
    heads = ('lm_head', 'cls.') if pretrained.options.get('tied', True) else ()
    original = {name for name in pretrained.tensors if not name.startswith(heads or ('cls.',))}
    assert set(again.tensors) == original


def test_spare_rows_of_the_table_stay_behind(tmp_path):
    made = fresh(outputs=90)
    export(made, tmp_path / 'out', 'hf')
    module, params, _ = load_without_tokenizer(tmp_path / 'out')
    tokens = jnp.arange(12)[None]
    expected = made.module.apply({'params': made.params}, tokens)
    assert expected.shape == (1, 12, 90)
    np.testing.assert_array_equal(module.apply({'params': params}, tokens), expected)


def load_without_tokenizer(folder):
    pretrained = interop.open_pretrained(folder)
    module = weights.make_module(weights.model_config(pretrained), pretrained.vocabulary)
    return module, weights.read_all(pretrained, module), None


def test_large_models_are_written_as_several_files(tmp_path):
    arrays = {str(i): np.full((4, 4), i, np.float32) for i in range(5)}
    tensors.write_safetensors(tmp_path, arrays, shard_bytes=128)
    assert len(list(tmp_path.glob('model-0000?-of-00003.safetensors'))) == 3
    found = tensors.of_folder(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read((slice(1, 3), slice(0, 4))), array[1:3])


@pytest.mark.parametrize(
    ('options', 'field'),
    [
        ({'logit_soft_cap': 30.0}, 'logit_soft_cap=30.0'),
        ({'attention_soft_cap': 30.0}, 'attention_soft_cap=30.0'),
        ({'window': 8, 'stride': 2, 'positions': 'rope', 'norm': 'rms'}, 'stride=2'),
        ({'positions': 'sinusoidal'}, "positions='sinusoidal'"),
        ({'positions': 'rope', 'norm': 'rms', 'bias': False, 'activation': 'relu'}, 'activation'),
        (
            {
                'positions': 'rope',
                'norm': 'rms',
                'bias': False,
                'activation': 'swiglu',
                'norm_position': 'post',
            },
            "norm_position='post'",
        ),
        ({'kv_heads': 2}, 'kv_heads=2'),
        ({'head': 'mean'}, "head='mean'"),
        ({'experts': 4}, 'experts=4'),
    ],
)
def test_what_no_family_has_is_named(tmp_path, options, field):
    with pytest.raises(ConfigError, match=field):
        export(fresh(**options), tmp_path / 'out', 'hf')
    assert not (tmp_path / 'out').exists()


def test_a_program_for_any_length_has_no_capacity(tmp_path):
    with pytest.raises(ConfigError, match=r'capacity_factor: expected None .* got 1\.25'):
        export(fresh(experts=4), tmp_path / 'out', 'stablehlo')


def test_nothing_is_written_over(tmp_path):
    with pytest.raises(ConfigError, match='exists'):
        export(fresh(), tmp_path, 'hf')


def test_plain_safetensors_have_our_own_names(tmp_path):
    made = fresh(scan=True)
    export(made, tmp_path / 'out', 'safetensors')
    found = load_file(tmp_path / 'out' / 'model.safetensors')
    expected = made.params['blocks']['mlp']['dense']['kernel']
    np.testing.assert_array_equal(found['blocks/mlp/dense/kernel'], expected)
    said = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert (said['model']['width'], said['outputs']) == (32, 96)


RELOAD = """
import sys
sys.modules['bigjax'] = None  # cannot be imported
import jax, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1] + '/model.stablehlo', 'rb').read()))
with np.load(sys.argv[2]) as file:
    for i in range(2):
        inputs = [file[f'tokens{i}'], file[f'mask{i}']][: len(program.in_avals)]
        off = abs(np.asarray(program.call(*inputs)) - file[f'outputs{i}']).max()
        assert off < 1e-5, off
print('equal')
"""


@pytest.mark.parametrize('name', ['llama', 'bert'])
def test_a_program_runs_without_this_package(tmp_path, name):
    pytest.importorskip('flatbuffers')
    module, params, tokenizer = interop.load(HUB / name)
    export(Trained(module, jax.device_get(params), tokenizer), tmp_path / 'out', 'stablehlo')
    random, cases = np.random.default_rng(0), {}
    for i, shape in enumerate([(1, 7), (4, 16)]):
        tokens = random.integers(0, 96, shape, np.int32)
        mask = np.arange(shape[1])[None] < np.array([[5]])
        mask = np.broadcast_to(mask, shape) if name == 'bert' else np.ones(shape, bool)
        outputs = module.apply({'params': params}, {'tokens': tokens, 'mask': mask})
        cases |= {f'tokens{i}': tokens, f'mask{i}': mask, f'outputs{i}': np.asarray(outputs)}
    np.savez(tmp_path / 'cases.npz', **cases)
    command = [sys.executable, '-c', RELOAD, str(tmp_path / 'out'), str(tmp_path / 'cases.npz')]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == 'equal', ran.stderr[-2000:]


def test_a_run_goes_out_by_the_command(tmp_path):
    (tmp_path / 'text.txt').write_text('The quick brown fox jumps over the lazy dog. \n' * 99)
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(place=tmp_path))
    run, out = tmp_path / 'run', tmp_path / 'out'
    assert cli.main(['train', f'--config={config}', f'--workdir={run}']) == 0
    assert cli.main(['export', f'--run={run}', '--to=hf', f'--out={out}']) == 0
    loaded = trained.load(run)
    module, params, tokenizer = interop.load(out)
    tokens = jnp.asarray([tokenizer.encode('The fox')])
    expected, _ = loaded.model.apply({'params': loaded.params}, tokens)
    np.testing.assert_allclose(module.apply({'params': params}, tokens), expected, atol=1e-5)
    assert tokenizer.encode('The fox') == loaded.tokenizer.encode('The fox')
    assert cli.main(['export', f'--run={run}', '--to=hf', f'--out={out}']) == 78


CONFIG = """
def get_config():
    text = {{'path': '{place}/text.txt', 'sequence_length': 16}}
    text |= {{'tokenizer': {{'name': 'bpe', 'vocab_size': 280}}, 'cache_dir': '{place}/cache'}}
    return {{
        'task': 'language_model',
        'data': {{'name': 'text', **text}},
        'model': {{'name': 'transformer', 'width': 32}},
        'train': {{'steps': 2, 'batch_size': 8}},
    }}
"""
