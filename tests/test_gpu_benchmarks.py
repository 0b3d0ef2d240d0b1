"""The scripts for a GPU, as far as they can be tested without one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, gpu_images, gpu_lm, workers
from bigjax import trees
from bigjax.train.build import build

FACTS = {'without_lookups': 124_000_000, 'devices': 1}


def test_a_step_is_dispatched_before_the_last_is_waited_for():
    events = []

    def step():
        number = len([event for event in events if event[0] == 'dispatch'])
        events.append(('dispatch', number))
        return lambda: events.append(('wait', number))

    assert len(workers.timed(step, 3)) == 3
    dispatched = [number for kind, number in events if kind == 'dispatch']
    assert dispatched == [0, 1, 2, 3, 4]
    for number in range(4):
        assert events.index(('wait', number)) > events.index(('dispatch', number + 1))
    assert events[-1] == ('wait', 4)


def test_mfu_is_of_the_formula_printed():
    config = gpu_lm.config_of('124m', 32, {})
    rates = gpu_lm.rates(config, {**FACTS, 'device_kind': 'NVIDIA H100 80GB HBM3'}, 0.1)
    tokens = 32 * 1024
    assert rates['tokens_per_second'] == tokens / 0.1
    flops = (6 * 124e6 + 12 * 12 * 768 * 1024) * tokens
    assert rates['mfu_palm'] == pytest.approx(flops / 0.1 / 989e12)
    causal = (6 * 124e6 + 6 * 12 * 768 * 1024) * tokens
    assert rates['mfu_causal'] == pytest.approx(causal / 0.1 / 989e12)


def test_mfu_of_an_unknown_device_is_none():
    config = gpu_lm.config_of('tiny', None, {})
    rates = gpu_lm.rates(config, {**FACTS, 'device_kind': 'a card'}, 0.1)
    assert rates['mfu_palm'] is rates['mfu_causal'] is None
    assert rates['flops_palm'] > 0


def test_a_side_that_fails_tells_why_and_the_other_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, 'ROOT', tmp_path)
    worker = """
import sys, time
sys.path.insert(0, {root!r})
from benchmarks.workers import serve
def start(spec):
    print('noise on stdout')
    if spec['fails']:
        raise ValueError('no such card')
    return dict, lambda: float
serve(start)
"""
    root = str(gpu_lm.ROOT)
    (tmp_path / 'worker.py').write_text(worker.format(root=root))
    sides = {
        name: gpu.Side('worker', {'fails': name == 'pytorch', 'warmup': 1}) for name in gpu.SIDES
    }
    results = gpu.race(sides, rounds=2, steps=3)
    assert results['pytorch'] == {'error': 'ValueError: no such card'}
    assert [len(turn) for turn in results['bigjax']['rounds']] == [3, 3]
    assert gpu.compared(results) == {}
    (missing,) = gpu.race({'pytorch': gpu.Side('not_installed', {})}, 1, 1).values()
    assert missing['error'].endswith('No module named not_installed')


def test_sides_of_different_size_are_not_compared(monkeypatch):
    def race(*_):
        return {
            side: {'rounds': [[0.1, 0.1]], 'facts': {'parameters': count}}
            for side, count in (('bigjax', 5), ('pytorch', 6))
        }

    monkeypatch.setattr(gpu, 'race', race)
    arguments = gpu.parse(gpu.parser(''), [])
    config = gpu_images.config_of('vit_s16', 8, True, {})
    with pytest.raises(SystemExit, match=r"different numbers of parameters: .*'pytorch': 6"):
        gpu.against_pytorch('vit', config, {}, arguments, gpu_images.rates, {})


def test_ratios_are_of_medians():
    results = {
        'bigjax': {'rounds': [[1.0, 2.0, 9.0], [2.0, 2.0, 2.0]]},
        'pytorch': {'rounds': [[4.0, 4.0, 4.0], [8.0, 8.0, 8.0]]},
    }
    ratios = gpu.compared(results)
    assert ratios['step_seconds_ratio'] == np.median([2 / 4, 2 / 8])
    assert ratios['median_step_ratio'] == 2 / 6


CHANGES = gpu_lm.variants(16, 1024)
ONLY_ON_A_GPU = ('attention: cuDNN', 'remat: offload')


@pytest.mark.parametrize('name', [name for name in CHANGES if name not in ONLY_ON_A_GPU])
def test_each_change_of_the_ablation_is_one_that_the_config_has(name):
    changes, environment = CHANGES[name]
    assert bool(changes) != bool(environment)
    if changes:
        few = {'model.layers': 2}
        changed = gpu_lm.config_of('124m', 16, few | changes)
        assert changed != gpu_lm.config_of('124m', 16, few)
        build(changed)


def test_the_largest_size_has_1_3_billion_parameters():
    config = gpu_lm.config_of('1.3b', 8, {'model.scan': True})  # faster to trace
    run = build(config)
    layers, width = 24, 2048
    block = 12 * width**2 + 13 * width
    tables = (50_304 + 1024) * width
    assert trees.count(run.abstract.params) == layers * block + tables + 2 * width
    assert 1.3e9 < trees.count(run.abstract.params) < 1.32e9


@pytest.mark.parametrize('case', list(gpu_images.CASES))
def test_torch_has_models_of_images_as_large_as_ours(case):
    pytest.importorskip('torch')
    from benchmarks import torch_models

    config = gpu_images.config_of(case, 8, False, {})
    spec = gpu_images.torch_spec(case, config, False)
    theirs = getattr(torch_models, spec['model'])(**spec['arguments'])
    count = sum(parameter.numel() for parameter in theirs.parameters())
    ours = build(config).abstract.params
    assert trees.count(ours) == count
    assert count == {'resnet50': 25_557_032, 'vit_s16': 22_050_664}[case]  # of torchvision and timm


def test_torch_has_our_loss_and_gradient_from_our_weights():
    """In float64 on neither side: float32 sums in another order."""
    torch = pytest.importorskip('torch')
    from benchmarks import torch_models

    changes = {'model.width': 64, 'model.vocab_size': 128, 'data.vocab_size': 128}
    config = gpu_lm.config_of('tiny', 8, changes)
    run = build(config)
    params = run.init().params
    theirs = torch_models.GPT(**gpu_lm.torch_spec(config)['arguments'])
    leaves = jax.device_get(params)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.tensor(as_torch(leaves, name)))
    batch = run.splits.sources['train'][np.arange(8)]
    outputs = theirs(torch.tensor(batch['inputs']).long())
    targets = torch.tensor(batch['targets']).long().flatten()
    loss = torch.nn.functional.cross_entropy(outputs, targets)
    loss.backward()

    def mean_loss(params):
        batch_ = {**batch, 'weights': jnp.ones(8)}
        found = run.recipe.task.loss(
            lambda inputs: run.recipe.model.apply({'params': params}, inputs, train=True)[0], batch_
        )
        return found.values.mean()

    ours, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
    assert float(ours) == pytest.approx(loss.item(), rel=1e-6)
    grads = jax.device_get(grads)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(as_torch(grads, name), parameter.grad.numpy(), atol=2e-6)


def as_torch(tree, name):
    """The leaf of our tree that PyTorch's GPT calls `name`, in its shape."""
    names = {
        'tokens': 'embed',
        'positions': 'positions',
        'norm': 'final_norm',
        'norms.0': 'attention_norm',
        'norms.1': 'mlp_norm',
        'out': 'attention/out',
        'up': 'mlp/dense',
        'down': 'mlp_out',
    }
    *modules, leaf = name.split('.')
    block = ''
    if modules[0] == 'blocks':
        block, modules = f'block_{modules[1]}/', modules[2:]
    kind = {'weight': ('kernel', 'embedding', 'scale'), 'bias': ('bias',)}[leaf]
    flat = dict(zip(trees.names(tree), jax.tree.leaves(tree), strict=True))

    def read(module):
        (found,) = [
            flat[f'{block}{module}/{each}'] for each in kind if f'{block}{module}/{each}' in flat
        ]
        if leaf == 'bias':
            return found.reshape(-1)
        if module.startswith(('attention/', 'mlp/', 'mlp_out')):
            width = found.shape[-1] if module.endswith('out') else found.shape[0]
            return (
                found.reshape(-1, width).T if module.endswith('out') else found.reshape(width, -1).T
            )
        return found

    if modules == ['qkv']:
        return np.concatenate([read(f'attention/{part}') for part in ('query', 'key', 'value')])
    return read(names['.'.join(modules)])


@pytest.fixture
def small(monkeypatch):
    """Flags for a run of few tokens; its processes have one device."""
    monkeypatch.setenv('XLA_FLAGS', '')
    return ['--smoke', '--set=model.vocab_size=512', '--set=data.vocab_size=512']


def lines(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith('{')]


def test_gpu_lm_runs(small, capsys, tmp_path):
    gpu_lm.main([*small, '--sides=bigjax', f'--out={tmp_path / "lm.jsonl"}'])
    text = capsys.readouterr().out
    assert '6 N + 12 L d T' in text
    (found,) = lines(text)
    assert found == json.loads((tmp_path / 'lm.jsonl').read_text())
    assert found['step_seconds']['steps'] == 4
    assert found['mfu_palm'] is None  # a CPU's peak is not known
    assert found['compiled']['temporary_bytes'] > 0
    assert '| tiny | bigjax |' in text


@pytest.mark.slow
def test_an_ablation_runs_and_a_change_that_cannot_be_made_is_told(small, capsys):
    gpu_lm.main([*small, '--ablate', '--only=cuDNN'])
    first, changed, again = lines(capsys.readouterr().out)
    assert 'expects a GPU' in changed['error']
    assert first['speed'] == 1.0
    assert again['speed'] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ('script', 'flags'),
    [(gpu_lm, None), *((gpu_images, ['--smoke', f'--models={case}']) for case in gpu_images.CASES)],
)
def test_both_sides_run(script, flags, small, capsys):
    pytest.importorskip('torch')
    script.main(flags or small)
    ours, theirs, ratios = lines(capsys.readouterr().out)
    assert ours['parameters'] == theirs['parameters']
    assert ours['devices'] == theirs['devices'] == 1
    assert ours['step_seconds']['steps'] == theirs['step_seconds']['steps'] == 4
    assert ratios['step_seconds_ratio'] > 0
