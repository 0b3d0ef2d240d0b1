"""The step that is planned is the one that trains, on targets that are and are not at hand."""

import dataclasses
import json

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bigjax import config, config_file, schema, trees
from bigjax.data.batches import to_device, train_batch
from bigjax.errors import ConfigError, EnvironmentProblem
from bigjax.models import flops
from bigjax.plan import ask, compile, sketch, targets
from bigjax.plan.compile import Answer, OutOfMemory, compile_step, out_of_memory
from bigjax.train.build import build

LLAMA = 'configs/llama.py:tiny'
CPU = targets.parse('cpu:8')


@pytest.fixture(scope='module')
def settings():
    return config_file.load(LLAMA, [('mesh.fsdp', '4'), ('mesh.tensor', '2')])


@pytest.fixture(scope='module')
def answer(settings):
    return compile_step(settings, CPU)


def test_memory_is_that_of_the_step_that_trains(settings, answer):
    run = build(settings)
    with jax.set_mesh(run.mesh):
        state = run.init()
        rows = train_batch(run.splits.sources['train'], 0, 0, 16, slice(0, 16))
        batch = to_device(rows, run.batch_sharding, 16)
        step = run.jitted_step()
        sizes = step.lower(state, batch).compile().memory_analysis()
        assert sum(answer.memory.values()) - answer.memory['temporaries'] == pytest.approx(
            sizes.argument_size_in_bytes, abs=64
        )
        spare = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        assert answer.memory['temporaries'] == sizes.temp_size_in_bytes + spare
        held = {name: live(tree) for name, tree in parts(state, batch).items()}
        assert {name: answer.memory[name] for name in held} == held
        step(state, batch)  # it runs as it was planned


def parts(state, batch):
    return {'parameters': state.params, 'optimizer': state.optimizer, 'batch': batch}


def live(tree) -> int:
    """Bytes that the first device really holds."""
    device = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def test_flops_are_those_of_the_formula(settings, answer):
    layers, width, hidden, length, vocabulary, rows = 2, 128, 384, 128, 256, 16
    tokens = rows * length
    matrices = layers * (4 * width**2 + 3 * width * hidden)
    attention = 2 * layers * width * length  # of T squared all, masked or not
    head = vocabulary * width
    # forward, again for remat (but for a block's last product), twice backward; the head thrice
    again = matrices + attention - layers * width * hidden
    assert answer.flops == 2 * tokens * (3 * (matrices + attention + head) + again)
    norms = (2 * layers + 1) * width
    assert answer.model_flops == flops.palm(matrices + head + norms, layers, width, length, tokens)


def test_collectives_run_over_the_axes_that_split(answer):
    axes = {axis for row in answer.collectives for axis in row.axes}
    assert axes == {'fsdp', 'tensor'}
    assert answer.reach == {'fsdp': 1, 'tensor': 1}
    gathered = sum(row.size for row in answer.collectives if row.kind == 'all-gather')
    params = trees.num_bytes(build(config_file.load(LLAMA)).abstract.params)
    assert gathered > params / 2  # each device sees its half of the weights at least once


def test_through_a_process_and_json(settings, answer, capfd):
    assert ask.ask(settings, CPU, 'O1').memory['parameters'] == answer.memory['parameters']
    assert 'compiling for cpu:8: batch 16, fsdp=4 tensor=2, remat full' in capfd.readouterr().err
    there = json.loads(json.dumps(schema.to_dict(answer)))
    assert schema.build(Answer, there) == answer


def test_what_cannot_be_built_is_said_in_a_line(settings):
    with pytest.raises(ConfigError, match='meshes that fit'):
        ask.ask(config.with_values(settings, **{'mesh.fsdp': 3}), CPU)


def test_a_compiler_that_dies_leaves_its_last_words(settings, monkeypatch):
    monkeypatch.setattr(
        ask, 'environment', lambda target, level: {'XLA_FLAGS': '--xla_no_such_flag=1'}
    )
    with pytest.raises(EnvironmentProblem, match=r'failed \(exit .*xla_no_such_flag') as error:
        ask.ask(settings, CPU)
    assert '\n' not in str(error.value)


def test_last_words():
    log = 'loading\nF1125 01:31 x.cc:1] Check failed: a\n  @ 0x1 f()\n'
    assert ask.last_words(log).endswith('a')
    assert ask.last_words('') == 'it said nothing'


def test_out_of_memory_is_an_answer():
    gib = 2**30
    used = 'CompileTimeHbmOom: Used 18.45G of 15.75G hbm. Exceeded hbm capacity by 2.70G.'
    short = 'RESOURCE_EXHAUSTED: required (33.89G) exceeds available HBM (15.75G).'
    assert out_of_memory(used) == OutOfMemory(round(18.45 * gib), round(15.75 * gib))
    assert out_of_memory(short) == OutOfMemory(round(33.89 * gib), round(15.75 * gib))
    assert out_of_memory('RESOURCE_EXHAUSTED: too much') == OutOfMemory(None, None)
    assert out_of_memory('INVALID_ARGUMENT: no such shape') is None


needs_libtpu = pytest.mark.skipif(
    not targets.is_installed('tpu'), reason='libtpu is not installed (extra plan)'
)


@needs_libtpu
def test_a_tpu_that_is_too_small():
    settings = config_file.load('configs/llama.py:350m', [('train.batch_size', '512')])
    settings = config.with_values(settings, **{'model.layers': 2})
    answer = ask.ask(settings, targets.parse('v5e:2x2'))
    assert answer.out_of_memory.available == round(15.75 * 2**30)
    assert answer.peak == answer.out_of_memory.needed > 16 * 2**30
    assert answer.flops > 0


@needs_libtpu
def test_a_tpu_that_is_large_enough():
    answer = ask.ask(config_file.load(LLAMA), targets.parse('v5e:2x4'))
    assert answer.reach == {'fsdp': 2}
    assert 0 < answer.peak < 16 * 2**30
    assert {row.kind for row in answer.collectives} >= {'all-gather'}


@pytest.mark.parametrize(('size', 'parameters'), [('7b', 6_738_415_616), ('1.3b', 1_345_423_360)])
def test_the_sizes_of_llama(size, parameters):
    """The first as published (Touvron et al. 2023)."""
    run = build(config_file.load(f'configs/llama.py:{size}'))
    assert trees.count(run.abstract.params) == parameters


@needs_libtpu
def test_gradients_are_reduced_between_slices():
    answer = ask.ask(config_file.load(LLAMA), targets.parse('v5e:2x2', 2))
    assert answer.reach == {'slice': 0, 'fsdp': 2}
    (between,) = (row for row in answer.collectives if 'slice' in row.axes)
    assert between.size == answer.memory['parameters']


# Advice


def test_a_whole_moment_of_a_split_parameter_is_told():
    settings = config_file.load(LLAMA, [('model.width', '512')])
    run = build(settings)
    assert not [line for line in compile.advice(run) if 'optimizer state' in line]
    replicated = NamedSharding(run.mesh, PartitionSpec())
    optimizer = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        run.abstract.optimizer,
    )
    whole = dataclasses.replace(
        run, abstract=dataclasses.replace(run.abstract, optimizer=optimizer)
    )
    told = [line for line in compile.advice(whole) if 'optimizer state' in line]
    assert any('/mu/blocks/mlp/gate/kernel' in line for line in told)


def test_odd_vocabularies_and_full_precision_are_told():
    settings = config_file.load(
        LLAMA, [('data.vocab_size', '250'), ('precision.compute', 'bfloat16')]
    )
    told = compile.advice(build(settings))
    assert any('vocab_size=256' in line for line in told)
    assert not any('float32' in line for line in told)
    assert any('float32' in line for line in compile.advice(build(config_file.load(LLAMA))))


def test_gradients_that_are_all_reduced_are_told():
    rows = [
        compile.Collective('all-reduce', ('fsdp',), 24, 2**30, 'embed/scatter-add'),
        compile.Collective('all-reduce', ('data',), 24, 2**30, 'x'),
        compile.Collective('all-reduce', ('fsdp', 'tensor'), 2, 100, 'norm'),
    ]
    (told,) = compile.reductions(rows)
    assert 'embed/scatter-add' in told


def test_rematerialisations_are_found():
    log = """
W spmd_partitioner.cc:636] [SPMD] Involuntary full rematerialization. The compiler cannot go from
x to y efficiently for HLO operation %gather = f32[8] gather(), metadata={op_name="jit(f)/gather"}.
"""
    assert 'jit(f)/gather' in ask.rematerialisations(log.replace('from\n', 'from '))[0]
    assert ask.rematerialisations('all is well') == []


# Sketches


def test_residuals_grow_with_what_a_policy_keeps():
    settings = config_file.load(LLAMA)
    drawn = sketch.sketch(settings, CPU, [{'fsdp': 8}, {'fsdp': 3}, {'fsdp': 2, 'tensor': 4}])
    assert [mesh.sizes for mesh in drawn.meshes] == [{'fsdp': 8}, {'fsdp': 2, 'tensor': 4}]
    none, full = drawn.remats['none'], drawn.remats['full']
    assert none.kept > drawn.remats['dots'].kept > full.kept
    assert none.flops < full.flops
    inputs_of_blocks = 2 * 16 * 128 * 128 * 4
    assert full.kept > inputs_of_blocks
    assert 'offload' not in drawn.remats


def test_models_without_policies():
    assert sketch.policies(config_file.load('configs/digits_cnn.py')) == ['']


def test_a_mesh_on_which_nothing_can_be_built():
    with pytest.raises(ConfigError, match='meshes that fit'):
        sketch.sketch(config_file.load(LLAMA), CPU, [{'fsdp': 3}])
