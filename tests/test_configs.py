"""Every shipped config builds and trains one step on a batch that it could meet."""

import ast
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from bigjax import config, config_file, schema, trees
from bigjax.data.core import ArraySource, DataSpec, Splits
from bigjax.models import transformer
from bigjax.train.build import Run, batch_spec, build
from bigjax.train.step import train_step

CONFIGS = sorted((Path(__file__).parents[1] / 'configs').glob('*.py'))


def labelled(length, classes):
    row = jax.ShapeDtypeStruct((length,), np.int32)
    mask = jax.ShapeDtypeStruct((length,), bool)
    targets = jax.ShapeDtypeStruct((), np.int32)
    inputs = {'tokens': row, 'mask': mask}
    return DataSpec(inputs, targets, num_classes=classes, vocab_size=8192, tokens=length)


SPECS = {  # of data that may not be on this machine
    'fashion_mnist_cnn': DataSpec(
        jax.ShapeDtypeStruct((28, 28, 1), np.uint8),
        jax.ShapeDtypeStruct((), np.int32),
        num_classes=10,
        mean=(0.3,),
        std=(0.3,),
    ),
    'shakespeare': DataSpec(
        jax.ShapeDtypeStruct((64,), np.int32),
        jax.ShapeDtypeStruct((64,), np.int32),
        vocab_size=65,
        tokens=64,
    ),
    'gpt2': DataSpec(
        jax.ShapeDtypeStruct((1024,), np.int32),
        jax.ShapeDtypeStruct((1024,), np.int32),
        vocab_size=50_257,
        tokens=1024,
    ),
    'ag_news': labelled(64, 4),
    'sst2': labelled(48, 2),
}


def built(path: Path) -> Run:
    loaded = config_file.load(str(path))
    if loaded.train.batch_size % 8:  # of the devices here
        loaded = config.with_values(loaded, **{'train.batch_size': 8})
    if path.stem not in SPECS:
        return build(loaded)
    batch = zeros(SPECS[path.stem], 60_000 if loaded.train.epochs else loaded.train.batch_size)
    source = ArraySource({key: batch[key] for key in ('inputs', 'targets')})
    return build(loaded, Splits(dict.fromkeys(('train', 'val', 'test'), source), SPECS[path.stem]))


def zeros(spec, rows):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batch_spec(spec, rows))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_one_step(path):
    run = built(path)
    state, logged = jax.eval_shape(
        partial(train_step, run.recipe), run.abstract, batch_spec(run.splits.spec, 8)
    )
    assert logged['loss'].shape == ()
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, run.abstract)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_docstring_gives_the_command_and_the_score(path):
    tree = ast.parse(path.read_text())
    docstring = ast.get_docstring(tree)
    assert f'--config=configs/{path.name}' in docstring
    assert any(word in docstring for word in ('accuracy', 'AUC', 'bits per byte'))
    assert 'minutes' in docstring or 'seconds' in docstring
    assert len(path.read_text().splitlines()) <= 80


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_touch_no_device(path):
    names = {
        alias.name.split('.')[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module)])
    }
    assert names <= {'ml_collections', 'bigjax'}


@pytest.mark.parametrize(
    ('size', 'parameters'),
    [('124m', 124.4e6), ('350m', 354.8e6), ('774m', 774.0e6), ('1558m', 1557.6e6)],
)
def test_sizes_of_gpt2_are_those_published(size, parameters):
    """As the hub's checkpoints have them; here 47 rows of the token table are spare."""
    loaded = config_file.load(f'{CONFIGS[0].parent / "gpt2.py"}:{size}')
    options = schema.build(transformer.Config, loaded.model.options, 'config.model')
    tokens = jax.ShapeDtypeStruct((1, 1024), np.int32)
    model = transformer.build(options, tokens, 50_257, np.float32)
    spare = 47 * options.width
    assert trees.count(model.abstract()['params']) - spare == pytest.approx(parameters, rel=1e-3)
