"""Answers to lm-evaluation-harness, against whole passes of the model."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import schema
from bigjax.config import MeshConfig
from bigjax.data.tokenizers import Bytes
from bigjax.errors import DataError
from bigjax.models import transformer
from bigjax.sharding.mesh import make_mesh
from bigjax.writing import Author


def test_without_the_package_the_extra_is_named():
    code = "import sys; sys.modules['lm_eval'] = None; import bigjax.harness"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'EnvironmentProblem' in done.stderr.splitlines()[-1]
    assert done.stderr.rstrip().endswith("pip install 'bigjax[eval]'")


@pytest.fixture(scope='module')
def harness():
    pytest.importorskip('lm_eval')
    from bigjax.harness import Harness

    config = {'layers': 2, 'width': 16, 'heads': 4, 'positions': 'learned'}
    model = transformer.build(
        schema.build(transformer.Config, config),
        jax.ShapeDtypeStruct((2, 48), np.int32),
        Bytes.vocab_size,
        jnp.float32,
    )
    # far from their start, so that tokens do not all have the same chances
    params = jax.tree.map(lambda leaf: 6 * leaf, jax.jit(model.init)(jax.random.key(0)))
    return Harness(Author(model, params['params'], Bytes(), make_mesh(MeshConfig())), batch_size=3)


def asked(*args):
    return SimpleNamespace(args=args)


def chances(harness, ids):
    """Log-probabilities [T - 1, V] of what follows each token but the last."""
    author = harness.author
    logits = author.model.apply({'params': author.params}, jnp.array([ids[:-1]]))[0][0]
    return np.asarray(jax.nn.log_softmax(logits))


def plain(harness, ids, count):
    found, at = chances(harness, ids)[-count:], np.array(ids[-count:])
    return found[np.arange(count), at].sum(dtype=np.float64), bool((found.argmax(-1) == at).all())


def test_loglikelihood_is_that_of_a_whole_pass(harness):
    pairs = [('To be', ' or not'), ('', 'that'), ('q ', 'is'), (' ', 'x'), ('a' * 60, 'bc')]
    pairs += [(f'{n}' * n, 'ü') for n in range(1, 9)]
    got = harness.loglikelihood([asked(*pair) for pair in pairs])
    for (context, continuation), answer in zip(pairs, got, strict=True):
        ids = [*(context.rstrip() and context).encode()] or [0, *context.encode()]
        count = len((context[len(context.rstrip()) :] + continuation).encode())
        want = plain(harness, [*ids, *continuation.encode()][-49:], count)
        assert answer == (pytest.approx(want[0], rel=1e-5), want[1])


def test_what_the_model_would_write_is_greedy(harness):
    best = int(chances(harness, [*b'ab', 0])[-1].argmax())
    assert best < 128  # a character of its own
    assert harness.loglikelihood([asked('ab', chr(best))])[0][1]
    others = [asked('ab', chr(id)) for id in range(1, 128) if id != best and chr(id).strip()]
    assert not any(greedy for _, greedy in harness.loglikelihood(others))


def test_a_continuation_that_does_not_fit_is_refused(harness):
    with pytest.raises(DataError, match='at most 48 tokens, got 49'):
        harness.loglikelihood([asked('a', 'b' * 49)])


def test_no_programs_but_those_of_the_buckets(harness, compilations):
    from bigjax.harness import score

    score.clear_cache()
    harness.loglikelihood([asked('a' * n, 'b') for n in range(1, 60)])
    assert compilations('score') == 2  # 32 and the longest, 48


@pytest.mark.parametrize('length', [1, 47, 48, 49, 96, 110])
def test_rolling_scores_each_token_once(harness, length):
    text = bytes(np.random.default_rng(0).integers(1, 128, length, np.uint8).tolist())
    ids = [0, *text]
    want = sum(
        plain(harness, ids[max(0, end - 48) : end + 1], min(48, end) - skipped)[0]
        for end, skipped in windows(length)
    )
    got = harness.loglikelihood_rolling([asked(text.decode()), asked('x'), asked('')])
    assert got[0] == pytest.approx(want, rel=1e-5)
    assert got[1:] == [pytest.approx(plain(harness, [0, *b'x'], 1)[0], rel=1e-5), 0]
    assert sum(count for _, count in harness._windows(text.decode())) == length


def windows(length):
    """(end, tokens of the window that were scored before): all windows but the last are full."""
    ends = [*range(48, length + 1, 48)]
    if length % 48:
        ends.append(length)
    return [(end, 48 - end % 48 if end > 48 and end % 48 else 0) for end in ends]


def test_writing_stops_before_the_stop(harness):
    greedy = {'until': [], 'max_gen_toks': 30, 'do_sample': False, 'temperature': 0.7}
    prompts = ['To be', 'or', '', 'not to be, ' * 6]
    whole = harness.generate_until([asked(prompt, greedy) for prompt in prompts])
    stop = whole[0][3:5]
    cut = harness.generate_until([asked(prompts[0], greedy | {'until': stop})])
    assert cut == [whole[0][: whole[0].index(stop)]]
    assert harness.generate_until([asked('or', {**greedy, 'max_gen_toks': 1})])[0] != whole[1]


def test_requests_keep_their_order_and_settings(harness):
    settings = [{'until': ['\n'], 'max_gen_toks': n} for n in (3, 9)]
    requests = [asked('ab' * n, settings[n % 2]) for n in range(1, 9)]
    one_by_one = [harness.generate_until([request])[0] for request in requests]
    assert harness.generate_until(requests) == one_by_one


def test_a_temperature_draws(harness):
    warm = {'until': [], 'max_gen_toks': 20, 'temperature': 2.0}
    assert len(set(harness.generate_until([asked('a', warm)] * 20))) > 15
