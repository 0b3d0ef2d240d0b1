"""Writing on: with a cache as without, in any batch, on any mesh; and the filters of sampling."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.config import MeshConfig
from bigjax.errors import ConfigError
from bigjax.generate import CHUNK, Sampling, filtered, generate, prefill, reader, write
from bigjax.models import transformer
from bigjax.sharding.mesh import make_mesh
from bigjax.sharding.rules import parameter_shardings

V = 17
PLAIN = Sampling()
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 3, 3, 4], [3]]
FAMILIES = {
    'gpt': {},
    'llama': {'positions': 'rope', 'norm': 'rms', 'kv_heads': 2, 'activation': 'swiglu'},
    'windowed': {'positions': 'rope', 'window': 5, 'scan': True, 'query_key_norm': True},
    'strided': {'positions': 'sinusoidal', 'stride': 3, 'attention_soft_cap': 2.0},
    'mixture': {'experts': 4, 'capacity_factor': None},
}


def build(length=64, **options):
    config = schema.build(transformer.Config, {'layers': 2, 'width': 16, 'heads': 4, **options})
    model = transformer.build(config, jax.ShapeDtypeStruct((2, length), np.int32), V, jnp.float32)
    # far from their start, so that tokens do not all have the same chances
    params = jax.tree.map(lambda leaf: 6 * leaf, jax.jit(model.init)(jax.random.key(0)))
    return model, params


def written(model, params, prompts=PROMPTS, sampling=PLAIN, tokens=21, **options):
    pieces = generate(model, params, prompts, sampling, max_new_tokens=tokens, **options)
    return np.concatenate(list(pieces), axis=1)


@pytest.mark.parametrize('sampling', [Sampling(0.0), Sampling(0.8, top_k=5, top_p=0.9)])
@pytest.mark.parametrize('family', FAMILIES)
def test_cached_and_uncached_texts_agree(family, sampling):
    model, params = build(**FAMILIES[family])
    plain = replace(model, empty_cache=None)
    ours = written(model, params, sampling=sampling)
    assert len(set(ours.ravel().tolist())) > 2
    np.testing.assert_array_equal(ours, written(plain, params, sampling=sampling))


@pytest.mark.parametrize('family', FAMILIES)
def test_cached_logits_are_those_of_a_whole_pass(family):
    model, params = build(**FAMILIES[family])
    tokens = np.random.default_rng(0).integers(V, size=(2, 24)).astype(np.int32)
    want = np.asarray(model.apply(params, tokens)[0])
    lengths = np.array([7, 11], np.int32)
    source = reader(model)
    pen = prefill(source, params, tokens[:, :16], lengths, 32)
    memory, positions = pen.memory, lengths
    np.testing.assert_allclose(pen.logits, want[[0, 1], lengths - 1], atol=1e-4)
    read = jax.jit(source.read)
    for _ in range(10):
        at = np.take_along_axis(tokens, positions[:, None], axis=1)
        logits, memory = read(params, memory, at, positions[:, None], np.ones_like(lengths))
        np.testing.assert_allclose(logits, want[[0, 1], positions], atol=1e-4)
        positions = positions + 1


def test_greedy_takes_the_likeliest_token_each_time():
    model, params = build(positions='rope')
    text = list(PROMPTS[0])
    for _ in range(10):
        text.append(int(model.apply(params, jnp.array([text]))[0][0, -1].argmax()))
    got = written(model, params, [PROMPTS[0]], Sampling(0.0), tokens=10)
    assert got[0].tolist() == text[3:]


def test_a_text_does_not_depend_on_its_batch():
    model, params = build(positions='rope')
    together = written(model, params, PROMPTS, Sampling(1.0))
    assert written(model, params, PROMPTS[:1], Sampling(1.0))[0].tolist() == together[0].tolist()
    other = written(model, params, PROMPTS, Sampling(1.0), seed=1)
    assert (other != together).any()


def test_a_mesh_writes_the_same():
    model, params = build(positions='rope', kv_heads=2)
    want = written(model, params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings, _ = parameter_shardings(model.axes, model.abstract(), mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        np.testing.assert_array_equal(written(model, placed, multiple_of=4), want)


def test_the_number_of_programs_does_not_grow_with_the_text(compilations):
    model, params = build(length=256)
    write.clear_cache()
    for length in (3, 9, 15, 16):
        written(model, params, [[1] * length], tokens=8)
    assert compilations('write') == 1


def test_a_bounded_context_goes_on_from_its_later_half():
    model, params = build(length=32)
    likeliest = jax.jit(lambda tokens: model.apply(params, tokens)[0].argmax(-1))
    text = list(PROMPTS[0])
    read, room = list(text), 32 - len(text)
    for _ in range(7):
        if room < CHUNK:
            read, room = text[-16:], 16
        for _ in range(CHUNK):
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(read)] = read
            text.append(int(likeliest(padded)[0, len(read) - 1]))
            read.append(text[-1])
        room -= CHUNK
    got = written(model, params, [PROMPTS[0]], Sampling(0.0), tokens=7 * CHUNK)
    assert got[0].tolist() == text[3:]


def test_a_context_too_short_is_refused():
    model, params = build(length=8)
    with pytest.raises(ConfigError, match='expected at least 16 to write on, got 8'):
        written(model, params)


def reference(logits, top_k, top_p, min_p):
    """One row at a time, token by token, in float64."""
    kept = np.zeros(logits.shape, bool)
    for row, out in zip(logits.astype(np.float64), kept, strict=True):
        order = np.argsort(-row, kind='stable')[:top_k]
        chances = np.exp(row[order] - row.max())
        chances /= chances.sum()
        before = 0.0
        for token, chance in zip(order, chances, strict=True):
            if before >= top_p or chance < min_p * chances[0]:
                break
            out[token] = True
            before += chance
    return kept


@pytest.mark.parametrize('top_k', [1, 4, 1000])
@pytest.mark.parametrize('top_p', [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize('min_p', [0.0, 0.2])
def test_filters(top_k, top_p, min_p):
    logits = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32) * 2
    got = np.asarray(jax.jit(filtered)(logits, top_k, max(top_p, 1e-9), min_p))
    np.testing.assert_array_equal(
        np.isfinite(got), reference(logits, top_k, max(top_p, 1e-9), min_p)
    )
    np.testing.assert_array_equal(got[np.isfinite(got)], logits[np.isfinite(got)])


def test_samples_follow_the_softened_chances():
    model, params = build(positions='none')
    logits = np.asarray(model.apply(params, np.array([[3]]))[0][0, -1], np.float64)
    expected = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    drawn = written(model, params, [[3]] * 4000, Sampling(0.8), tokens=1)
    np.testing.assert_allclose(np.bincount(drawn[:, 0], minlength=V) / 4000, expected, atol=0.03)
