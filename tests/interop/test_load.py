"""Pretrained weights against what transformers computed with them: tests/golden/hub."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import interop
from bigjax.config import MeshConfig
from bigjax.errors import CheckpointError, ConfigError
from bigjax.interop import tensors, weights
from bigjax.models import transformer
from bigjax.nn.params import unbox
from bigjax.sharding.mesh import make_mesh

HUB = Path(__file__).parents[1] / 'golden' / 'hub'
DECODERS = ('gpt2', 'llama', 'llama_tied', 'mistral', 'qwen3')


def golden(name):
    with np.load(HUB / name / 'golden.npz', allow_pickle=False) as file:
        return dict(file)


def inputs_of(name, said):
    tokens = jnp.asarray(said['tokens'], jnp.int32)
    if name != 'bert':
        return tokens
    return {'tokens': tokens, 'mask': jnp.asarray(said['mask']), 'token_types': tokens % 2}


@pytest.fixture
def bert(tmp_path):
    """A folder that a test may spoil."""
    return Path(shutil.copytree(HUB / 'bert', tmp_path / 'bert'))


def rewrite(folder, change):
    found = load_file(folder / 'model.safetensors')
    save_file(change(found), folder / 'model.safetensors')


def set_config(folder, **values):
    file = folder / 'config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize('name', DECODERS)
def test_decoders_give_the_same_logits(name):
    said = golden(name)
    module, params, tokenizer = interop.load(HUB / name)
    logits = module.apply({'params': params}, inputs_of(name, said))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
    np.testing.assert_allclose(logits, said['logits'], atol=2e-5)
    assert tokenizer.decode(tokenizer.encode('Hi!')) == 'Hi!'


def test_bert_gives_the_same_hidden_states_where_nothing_is_padding():
    said = golden('bert')
    module, params, _ = interop.load(HUB / 'bert')
    hidden = module.apply({'params': params}, inputs_of('bert', said))
    np.testing.assert_allclose(hidden[said['mask']], said['hidden'][said['mask']], atol=2e-5)


def test_a_bert_without_prefix_heads_and_todays_names_is_the_same(bert):
    def change(found):
        bare = {name.removeprefix('bert.'): x for name, x in found.items() if name[:4] == 'bert'}
        bare['embeddings.LayerNorm.gamma'] = bare.pop('embeddings.LayerNorm.weight')
        bare['embeddings.position_ids'] = np.arange(24)[None]
        return bare

    rewrite(bert, change)
    expected, found = interop.load(HUB / 'bert')[1], interop.load(bert)[1]
    jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_stacked_parameters_are_those_of_each_layer():
    pretrained = interop.open_pretrained(HUB / 'llama')
    unrolled = interop.load(HUB / 'llama')[1]
    module = weights.make_module(weights.model_config(pretrained, scan=True), 96)
    stacked = weights.read_all(pretrained, module)
    expected = jax.tree.map(lambda *x: np.stack(x), unrolled['block_0'], unrolled['block_1'])
    jax.tree.map(np.testing.assert_array_equal, expected, stacked['blocks'])
    said = golden('llama')
    logits = module.apply({'params': stacked}, inputs_of('llama', said))
    np.testing.assert_allclose(logits, said['logits'], atol=2e-5)


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('name', ['gpt2', 'llama'])
def test_every_device_reads_only_its_own_shard(name, scan, monkeypatch):
    pretrained = interop.open_pretrained(HUB / name)
    module = weights.make_module(weights.model_config(pretrained, scan=scan), 96)
    whole = weights.read_all(pretrained, module)
    read = []

    def counted(tensor):
        def get(slices):
            values = tensor.read(slices)
            read.append(values.size)
            return values

        return tensors.Tensor(tensor.shape, get)

    counting = {name: counted(tensor) for name, tensor in pretrained.tensors.items()}
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    params = weights.read_all(pretrained._replace(tensors=counting), module, mesh)
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    for query in [params['blocks'] if scan else params['block_0']]:
        kernel = query['attention']['query']['kernel']
        assert kernel.addressable_shards[0].data.size == kernel.size // 8
    shards = [leaf.addressable_shards for leaf in jax.tree.leaves(params)]
    different = sum(
        {str(shard.index): shard.data.size for shard in of_leaf}[index]
        for of_leaf in shards
        for index in {str(shard.index) for shard in of_leaf}
    )
    assert sum(read) == different
    said = golden(name)
    with jax.set_mesh(mesh):
        logits = jax.jit(module.apply)({'params': params}, inputs_of(name, said))
    np.testing.assert_allclose(logits, said['logits'], atol=2e-5)


def test_the_mesh_in_use_is_taken():
    with jax.set_mesh(make_mesh(MeshConfig())):
        params = interop.load(HUB / 'gpt2')[1]
    assert len(params['final_norm']['scale'].sharding.device_set) == 8


def test_a_fine_tuned_model_takes_the_leaves_that_there_are():
    pretrained = interop.open_pretrained(HUB / 'bert')
    config = weights.model_config(pretrained, head='first', pooler=True)
    module = weights.make_module(config, outputs=3)
    fresh = module.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    params, skipped = interop.read_params(pretrained, unbox(fresh)['params'], '^(?!token_types)')
    assert not pretrained.has('pooler')
    assert pretrained.has('head')
    names = sorted(line.partition(':')[0] for line in skipped)
    lacking = ['pooler/bias', 'pooler/kernel', 'read_out/bias', 'read_out/kernel']
    assert names == [*lacking, 'token_types/embedding']
    np.testing.assert_array_equal(params['read_out']['bias'], 0)
    found = pretrained.tensors['bert.embeddings.word_embeddings.weight'].read((slice(None),) * 2)
    np.testing.assert_array_equal(params['embed']['embedding'], found)


def test_the_head_of_a_masked_language_model_can_be_read():
    said, pretrained = golden('bert'), interop.open_pretrained(HUB / 'bert')
    config = weights.model_config(pretrained, head='tokens', head_transform=True)
    module = weights.make_module(config, 96)
    logits = module.apply({'params': weights.read_all(pretrained, module)}, inputs_of('bert', said))
    np.testing.assert_allclose(logits[said['mask']], said['logits'][said['mask']], atol=2e-5)


def test_options_make_the_same_model():
    options = interop.model_options(HUB / 'llama')
    assert transformer.Config(**{**options, 'rope_scaling': None}).kv_heads == 2
    assert options['rope_scaling']['kind'] == 'llama3'
    assert (options['vocab_size'], options['max_length'], options['tied']) == (96, 64, False)


@pytest.mark.parametrize('suffix', ['.bin', '.pt', '.pth', '.pkl', '.ckpt'])
def test_pickles_are_refused_by_name(bert, suffix):
    (bert / 'model.safetensors').rename(bert / f'model{suffix}')
    for path in (bert, bert / f'model{suffix}'):
        with pytest.raises(CheckpointError, match=rf'model\{suffix}: .* safetensors'):
            interop.load(path)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'model_type': 'mamba'}, "gpt2, bert.* got 'mamba'"),
        ({'model_type': 'own', 'auto_map': {}}, r'auto_map\) is never run'),
        ({'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
        ({'is_decoder': True}, 'is_decoder'),
        ({'hidden_act': 'mish'}, "hidden_act: no 'mish'"),
        ({'quantization_config': {'bits': 4}}, 'quantization_config'),
        ({'model_type': 'gpt2'}, 'n_layer: expected a value'),
    ],
)
def test_what_is_not_supported_is_named(bert, values, message):
    set_config(bert, **values)
    with pytest.raises(ConfigError, match=message):
        interop.load(bert)


@pytest.mark.parametrize(
    ('family', 'values', 'message'),
    [
        ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
        ('llama', {'attention_bias': True}, 'attention_bias'),
        ('llama', {'mlp_bias': True}, 'mlp_bias'),
        ('llama', {'rope_parameters': {'rope_type': 'yarn'}}, "rope type: .*'yarn'"),
        ('llama', {'rope_parameters': {'rope_type': 'linear'}}, 'expected factor, got none'),
        ('qwen3', {'use_sliding_window': True}, 'use_sliding_window'),
    ],
)
def test_fields_that_change_the_function_are_refused(tmp_path, family, values, message):
    folder = shutil.copytree(HUB / family, tmp_path / family)
    set_config(folder, **values)
    with pytest.raises(ConfigError, match=message):
        interop.load(folder)


def without(name):
    return lambda found: {key: value for key, value in found.items() if key != name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (without('bert.encoder.layer.1.output.dense.bias'), 'block_1/mlp_out/bias'),
        (lambda found: found | {'bert.extra.weight': np.zeros(3)}, 'bert.extra.weight'),
        (
            lambda found: found | {'bert.encoder.layer.2.output.dense.bias': np.zeros(32)},
            'bert.encoder.layer.2.output.dense.bias',
        ),
        (
            lambda found: found | {'bert.encoder.layer.0.output.dense.weight': np.zeros((32, 41))},
            r'block_0/mlp_out/kernel: .* has shape \(32, 41\) in .*, expected \(32, 40\)',
        ),
    ],
)
def test_missing_left_over_and_misshapen_tensors_are_named(bert, change, message):
    rewrite(bert, change)
    with pytest.raises(CheckpointError, match=message):
        interop.load(bert)


def test_damaged_files_are_refused(bert):
    (bert / 'model.safetensors').write_bytes(b'\x08\0\0\0\0\0\0\0{')
    with pytest.raises(CheckpointError, match=r'model.safetensors cannot be read'):
        interop.load(bert)
    (bert / 'config.json').write_text('{')
    with pytest.raises(ConfigError, match='expected JSON'):
        interop.load(bert)
    with pytest.raises(CheckpointError, match='hub folder'):
        interop.load(bert / 'nothing')


def test_older_configs_say_rope_elsewhere(tmp_path):
    folder = shutil.copytree(HUB / 'llama', tmp_path / 'llama')
    said = json.loads((folder / 'config.json').read_text())
    scaling = said.pop('rope_parameters')
    theta = scaling.pop('rope_theta')
    (folder / 'config.json').write_text(
        json.dumps({**said, 'rope_theta': theta, 'rope_scaling': scaling})
    )
    assert interop.model_options(folder) == interop.model_options(HUB / 'llama')
