"""The search, with functions for compilers: what fits best is known by trying everything."""

import math

import pytest

from bigjax import config_file
from bigjax.config import with_values
from bigjax.plan import search, targets
from bigjax.plan.compile import Answer, OutOfMemory
from bigjax.plan.sketch import MeshSketch, RematSketch, Sketch

GIB = 2**30
V5E = targets.parse('v5e:4x4')
SIZES = {'slice': 1, 'data': 1, 'fsdp': 16, 'expert': 1, 'context': 1, 'tensor': 1}


@pytest.fixture(scope='module')
def settings():
    return config_file.load('configs/llama.py:1.3b', [('train.batch_size', '64')])


def answer(mesh, rows, memory, *, remat='full', tells=True, flops=10**15, traffic=10**9):
    """A step of so many rows that takes so much memory: what it needs, if more than there is."""
    peak = memory(rows)
    fits = peak <= V5E.usable
    return Answer(
        mesh=mesh,
        reach={axis: 1 for axis, size in mesh.items() if size > 1},
        rows=rows,
        tokens=2048,
        memory={'parameters': GIB // 4, 'optimizer': GIB // 2, 'temporaries': peak - 3 * GIB // 4},
        flops=flops * rows,
        model_flops=flops * rows,
        formula='by hand',
        remat=remat,
        traffic=traffic if fits else None,
        out_of_memory=None if fits else OutOfMemory(peak if tells else None, None),
    )


LINEAR = {
    'grows': lambda rows: 2 * GIB + rows * GIB // 40,
    'far': lambda rows: 2 * GIB + rows * GIB // 64,
    'close': lambda rows: 2 * GIB + rows * GIB // 5,
    'bent': lambda rows: 2 * GIB + rows * GIB // 40 + GIB * (rows // 128),
}


@pytest.mark.parametrize('memory', LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize('tells', [True, False], ids=['tells', 'silent'])
def test_largest_batch(settings, memory, tells):
    asked = []

    def compile(changed):
        asked.append(changed.train.batch_size)
        return answer(SIZES, asked[-1], memory, tells=tells)

    first = answer(SIZES, 64, memory, tells=tells)
    found = search.largest_batch(settings, first, V5E, compile)
    best = max(rows for rows in range(16, 1025, 16) if memory(rows) <= V5E.usable)
    assert found.rows == best if memory is not LINEAR['bent'] else found.rows >= 0.75 * best
    assert len(asked) <= 4
    assert not [rows for rows in asked if rows % 16]


def test_no_batch_fits(settings):
    def compile(changed):
        return answer(SIZES, changed.train.batch_size, lambda rows: 99 * GIB)

    assert search.largest_batch(settings, compile(settings), V5E, compile) is None


def test_a_microbatch_is_the_unit(settings):
    accumulating = with_values(settings, **{'train.accumulation': 2})
    assert search.unit(accumulating, {'fsdp': 4, 'data': 2, 'tensor': 2}) == 16


def test_meshes_use_every_device_and_hold_the_state(settings):
    small = search.meshes(settings, V5E, GIB)
    assert all(math.prod(sizes.values()) == 16 for sizes in small)
    assert dict.fromkeys(('data', 'context', 'tensor', 'fsdp'), 16).items() <= {
        (axis, size) for sizes in small for axis, size in sizes.items()
    }
    assert len({tuple(sizes.values()) for sizes in small}) == len(small)
    large = search.meshes(settings, V5E, 100 * GIB)
    assert large
    assert all(sizes['fsdp'] * sizes['tensor'] >= 8 for sizes in large)
    two = targets.parse('v5e:4x4', 2)
    assert all(sizes['slice'] == 2 for sizes in search.meshes(settings, two, GIB))


def drawn(*meshes):
    """State is split over fsdp and tensor; policies keep much, or little at a third more FLOPs."""
    memory = {'parameters': 4 * GIB, 'optimizer': 8 * GIB}

    def split(sizes):
        parts = sizes['fsdp'] * sizes['tensor']
        return MeshSketch(sizes, {name: n // parts for name, n in memory.items()} | {'batch': 0})

    remats = {
        'none': RematSketch(3 * 64 * 10**15, 320 * GIB),
        'full': RematSketch(4 * 64 * 10**15, 16 * GIB),
    }
    return Sketch(tuple(map(split, meshes)), remats, GIB)


def test_search_compiles_few_and_ranks_by_speed(settings):
    meshes = [SIZES | {'fsdp': 16 // n, 'tensor': n} for n in (1, 2, 4)]
    asked = []

    def compile(changed):
        asked.append(changed)
        mesh = SIZES | {'fsdp': changed.mesh.fsdp, 'tensor': changed.mesh.tensor}
        # as if tensor cost: memory traffic makes it slower
        remat = changed.model.options['remat']
        each = {'none': GIB // 4, 'full': GIB // 40}[remat]
        return answer(
            mesh,
            changed.train.batch_size,
            lambda rows: 2 * GIB + rows * each,
            remat=remat,
            traffic=10**12 * mesh['tensor'],
            flops={'none': 3, 'full': 4}[remat] * 10**12,
        )

    first = answer(SIZES, 64, LINEAR['grows'])
    found = search.search(settings, V5E, first, drawn(*meshes), compile, 6)
    assert len(asked) + 1 == len(found) <= 7  # the config's own, too
    assert first in found
    assert {changed.model.options['remat'] for changed in asked} == {'none', 'full'}
    fitting = [answer for answer in found if search.fits(answer, V5E)]
    assert fitting
    assert found[: len(fitting)] == fitting  # those that fit, first
    rates = [search.speed(answer, V5E.chip).rate for answer in fitting]
    assert rates == sorted(rates, reverse=True)
    assert fitting[0].mesh == SIZES


def test_axes_that_split_nothing_are_left_out(settings):
    idle = SIZES | {'fsdp': 8, 'tensor': 2}
    memory = {'parameters': 4 * GIB // 8, 'optimizer': GIB, 'batch': 0}  # tensor splits nothing
    sketch = Sketch((*drawn(SIZES).meshes, MeshSketch(idle, memory)), drawn(SIZES).remats, GIB)
    first = answer(SIZES, 64, LINEAR['grows'])
    found = list(search.candidates(settings, V5E, sketch, first))
    assert found
    assert all(candidate.mesh == SIZES for candidate in found)


def test_estimates_are_corrected_by_what_was_compiled(settings):
    first = answer(SIZES, 64, LINEAR['grows'])
    more = answer(SIZES, 64, lambda rows: LINEAR['grows'](rows) * 2)
    few, many = (
        max(found.rows for found in search.candidates(settings, V5E, drawn(SIZES), known))
        for known in (more, first)
    )
    assert few < many
