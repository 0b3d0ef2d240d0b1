"""GGUF files, written here from a golden model as llama.cpp's converter writes them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax import interop
from bigjax.errors import CheckpointError, ConfigError
from bigjax.interop import families
from bigjax.nn.positions import Frequencies, Scaling

gguf = pytest.importorskip('gguf')

HUB = Path(__file__).parents[1] / 'golden' / 'hub'
TOKENS = [chr(33 + i) for i in range(90)] + ['Ġ', 'he', '<|bos|>', '<|eos|>', '<user>', 'Ċ']
TYPES = [1] * 92 + [3, 3, 4, 1]


def in_pairs(matrix, heads):
    """The order of rows that llama.cpp has: a half of a head and the other by turns."""
    halves = matrix.reshape(heads, 2, -1, matrix.shape[-1])
    return halves.swapaxes(1, 2).reshape(matrix.shape)


def write(
    path,
    name='llama_tied',
    pre='gpt-2',
    architecture='llama',
    extra=None,
    quantise=False,
    base=None,
):
    pretrained = interop.open_pretrained(HUB / name)
    options, tied = pretrained.options, pretrained.options['tied']
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(options['layers'])
    writer.add_context_length(options['max_length'])
    writer.add_embedding_length(options['width'])
    writer.add_feed_forward_length(options['mlp'])
    writer.add_head_count(options['heads'])
    writer.add_head_count_kv(options['kv_heads'])
    writer.add_rope_dimension_count(options['head_dim'] or options['width'] // options['heads'])
    writer.add_rope_freq_base(base or options['rope_base'])
    writer.add_layer_norm_rms_eps(options['norm_epsilon'])
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(['h e'])
    writer.add_bos_token_id(92)
    writer.add_eos_token_id(93)
    for module, place in families.GGUF_PLACES.items():
        if module == 'read_out' and tied:
            continue
        theirs = families.LLAMA.places[module].module
        layers = range(options['layers']) if '{}' in place.module else [0]
        for layer in layers:
            tensor = pretrained.tensors[f'{theirs.format(layer)}.weight']
            values = tensor.read(tuple(slice(0, size) for size in tensor.shape))
            if place.paired:
                heads = options['kv_heads' if module.endswith('key') else 'heads']
                values = in_pairs(values, heads)
            kind = None
            if quantise and values.ndim == 2 and values.shape[1] % 32 == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
                values = gguf.quants.quantize(values, kind)
            writer.add_tensor(f'{place.module.format(layer)}.weight', values, raw_dtype=kind)
    for key, values in (extra or {}).items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain(params):
    """llama_tied without its scaling, which converters refuse."""
    return {key: value for key, value in params.items() if key != 'rope_scaling'}


def test_the_same_parameters_as_of_the_hub_folder(tmp_path):
    path = write(tmp_path / 'model.gguf')
    module, params, _ = interop.load(path)
    jax.tree.map(np.testing.assert_array_equal, params, interop.load(HUB / 'llama_tied')[1])
    hub, found = interop.model_options(HUB / 'llama_tied'), interop.model_options(path)
    assert found.pop('norm_epsilon') == pytest.approx(hub.pop('norm_epsilon'))
    assert plain(found) == plain(hub)
    assert module.config.tied


def test_an_untied_head_and_the_scaling_of_llama_3(tmp_path):
    module, params, _ = interop.load(write(tmp_path / 'a.gguf', 'llama'))
    assert not module.config.tied
    jax.tree.map(np.testing.assert_array_equal, params, interop.load(HUB / 'llama')[1])
    base, scaling = 500_000.0, Scaling('llama3', 8.0, 1.0, 4.0, 8192)
    divisors = Frequencies(base).of(8) / Frequencies(base, scaling).of(8)
    assert divisors.max() == pytest.approx(8)
    path = write(tmp_path / 'b.gguf', 'llama', extra={'rope_freqs.weight': divisors}, base=base)
    assert interop.load(path)[0].config.rope_scaling == scaling
    path = write(tmp_path / 'c.gguf', 'llama', extra={'rope_freqs.weight': divisors})
    with pytest.raises(ConfigError, match='rope_freqs'):
        interop.load(path)


def test_quantised_tensors_are_near(tmp_path):
    params = interop.load(write(tmp_path / 'model.gguf', quantise=True))[1]
    exact = interop.load(HUB / 'llama_tied')[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), params, exact)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, exact)), strict=True))


@pytest.mark.parametrize(
    ('pre', 'text', 'tokens'),
    [
        ('gpt-2', 'the 12', ['t', 'he', 'Ġ', '1', '2']),
        ('smollm', 'he<user><|eos|>', ['he', '<user>', '<|eos|>']),
        ('llama-bpe', 'he', ['<|bos|>', 'he']),
        ('qwen2', 'he\n', ['he', 'Ċ']),
    ],
)
def test_the_tokenizer_of_the_metadata(tmp_path, pre, text, tokens):
    tokenizer = interop.load(write(tmp_path / 'model.gguf', pre=pre))[2]
    ids = tokenizer.encode(text)
    assert [TOKENS[id] for id in ids] == tokens
    assert tokenizer.special == {'bos': 92, 'eos': 93}
    assert tokenizer.decode(ids) == text.replace('<|eos|>', '')


def test_what_is_not_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="expected llama, got 'phi3'"):
        interop.load(write(tmp_path / 'a.gguf', architecture='phi3'))
    with pytest.raises(ConfigError, match="'tekken'"):
        interop.load(write(tmp_path / 'b.gguf', pre='tekken'))
    (tmp_path / 'c.gguf').write_bytes(b'GGUF')
    with pytest.raises(CheckpointError, match=r'c\.gguf'):
        interop.load(tmp_path / 'c.gguf')
