"""Collectives and memory traffic, read from HLO by hand and from programs that we compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bigjax.plan import hlo
from bigjax.plan.hlo import Collective

MESH = {'slice': 1, 'data': 2, 'fsdp': 2, 'tensor': 2}  # device = 4 data + 2 fsdp + tensor


@pytest.mark.parametrize(
    ('attributes', 'axes', 'members'),
    [
        ('replica_groups={{0,1},{2,3},{4,5},{6,7}}', ('tensor',), 2),
        ('replica_groups={{0,2},{1,3},{4,6},{5,7}}', ('fsdp',), 2),
        ('replica_groups={{0,2,4,6},{1,3,5,7}}', ('data', 'fsdp'), 4),
        ('replica_groups=[4,2]<=[8]', ('tensor',), 2),
        ('replica_groups=[2,4]<=[8]', ('fsdp', 'tensor'), 4),
        ('replica_groups=[4,2]<=[2,4]T(1,0)', ('data',), 2),
        ('replica_groups=[4,2]<=[2,2,2]T(0,2,1)', ('fsdp',), 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ('data',), 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ('fsdp', 'tensor'), 4),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ('fsdp',), 2),
        ("replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}", ('data', 'tensor'), 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'b'}", ('fsdp',), 2),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(<=[4,2]T(1,0)) {'b'}", ('data', 'fsdp'), 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,1,2,3,4,6,5,7) {'a'}", None, 2),
        ('replica_groups={}', ('data', 'fsdp', 'tensor'), 8),
        ('source_target_pairs={{0,4},{1,5},{2,6},{3,7}}', ('data',), 2),
    ],
)
def test_axes_of_groups(attributes, axes, members):
    groups = hlo.partition_groups(attributes + ', use_global_device_ids=true', 8)
    assert groups.shape[1] == members
    if 'pairs' not in attributes:
        assert sorted(groups.ravel()) == list(range(8))
    if axes is not None:
        assert hlo.varying_axes(groups, MESH) == axes


def module(body: str) -> str:
    return f"""
HloModule m, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}
{body}
"""


LOOP = """
%cond (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(24)
  %at = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%at, %limit), direction=LT
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  %at.1 = s32[] get-tuple-element(%b), index=0
  %value = f32[8]{0} get-tuple-element(%b), index=1
  %start = f32[8]{0} all-reduce-start(%value), channel_id=1, replica_groups=[4,2]<=[8]
  %done = f32[8]{0} all-reduce-done(%start)
  ROOT %next = (s32[], f32[8]{0}) tuple(%at.1, %done)
}

ENTRY %main (p: f32[8], q: s32[]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = s32[] parameter(1)
  %init = (s32[], f32[8]{0}) tuple(%q, %p)
  %loop = (s32[], f32[8]{0}) while(%init), condition=%cond, body=%bodyBACKEND
  ROOT %out = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_loops_by_the_constant_in_their_condition_and_by_what_is_known():
    text = module(LOOP.replace('BACKEND', ''))
    assert hlo.collectives(text, MESH) == [Collective('all-reduce', ('tensor',), 24, 24 * 32)]
    known = ', backend_config={"known_trip_count":{"n":"7"}}'
    text = module(LOOP.replace('BACKEND', known))
    assert hlo.collectives(text, MESH) == [Collective('all-reduce', ('tensor',), 7, 7 * 32)]


def test_starts_of_tuples_channels_and_fused_reduce_scatters():
    text = module("""
%fused (f: bf16[64,8]) -> bf16[32,8] {
  %f = bf16[64,8]{1,0} parameter(0)
  %reduced = bf16[64,8]{1,0} all-reduce(%f), channel_id=9, replica_groups=[4,2]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = bf16[32,8]{1,0} dynamic-slice(%reduced, %zero, %zero), dynamic_slice_sizes={32,8}
}

ENTRY %main (p: bf16[64,8], q: f32[4]) -> bf16[32,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(%q), channel_id=2, replica_groups=[2,4]<=[8]
  %g.again = (f32[4]{0}, f32[16]{0}) all-gather-start(%q), channel_id=2, replica_groups=[2,4]<=[8]
  %g.done = f32[16]{0} all-gather-done(%g)
  %s = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1}}
  %r = f32[2]{0} reduce-scatter(%q), channel_id=4, replica_groups={{0,4},{1,5},{2,6},{3,7}}
  %alone = f32[4]{0} all-reduce(%q), replica_groups=[8,1]<=[8], to_apply=%add
  ROOT %fusion = bf16[32,8]{1,0} fusion(%p), kind=kCustom, calls=%fused
}
""")
    assert set(hlo.collectives(text, MESH)) == {
        Collective('reduce-scatter', ('tensor',), 1, 1024),
        Collective('all-gather', ('fsdp', 'tensor'), 1, 64),
        Collective('collective-permute', ('tensor',), 1, 16),
        Collective('reduce-scatter', ('data',), 1, 16),
    }


def test_collectives_of_a_program_of_our_own():
    mesh = Mesh(
        np.array(jax.devices()).reshape(4, 2), ('fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 2
    )

    def body(x, _):
        whole = jax.lax.all_gather(x, 'fsdp', axis=0, tiled=True)  # [64, 16]
        part = jax.lax.psum_scatter(jnp.sin(whole), 'tensor', scatter_dimension=0, tiled=True)
        return x * jax.lax.psum(jnp.cos(part), 'fsdp').sum(), None

    def program(x):
        return jax.lax.scan(body, x, length=5)[0]

    spec = PartitionSpec('fsdp')
    mapped = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
    text = jax.jit(mapped).lower(x).compile().as_text()
    rows = hlo.collectives(text, dict(mesh.shape))
    found = {(row.kind, row.axes, row.times, row.size) for row in rows}
    whole = 64 * 16 * 4
    assert found == {
        ('all-gather', ('fsdp',), 5, 5 * whole),
        ('reduce-scatter', ('tensor',), 5, 5 * whole),
        ('all-reduce', ('fsdp',), 5, 5 * whole // 2),
    }


def test_traffic_is_the_compilers_own_where_there_are_no_loops():
    def program(x, w):
        return jnp.tanh(x @ w).T @ jnp.exp(x), jax.lax.dynamic_update_slice(w, w[:2] + 1, (3, 0))

    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 256), (256, 256)))
    compiled = jax.jit(program).lower(x, w).compile()
    theirs = compiled.cost_analysis()['bytes accessed']
    assert hlo.memory_traffic(compiled.as_text()) == pytest.approx(theirs, rel=0.05)


def test_traffic_multiplies_loops_and_reads_slices_only():
    def program(stack, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    def traffic(layers):
        stack = jax.ShapeDtypeStruct((layers, 256, 256), jnp.float32)
        x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
        return hlo.memory_traffic(jax.jit(program).lower(stack, x).compile().as_text())

    layer = 256 * 256 * 4
    a_layer = (traffic(40) - traffic(20)) / 20
    assert 4 * layer <= a_layer <= 9 * layer  # its weights, copied out of the stack, and x


def test_what_lies_in_fast_memory_costs_no_traffic():
    text = module("""
ENTRY %main (p: f32[256]) -> f32[256] {
  %p = f32[256]{0:T(256)} parameter(0)
  %near = f32[256]{0:T(256)S(1)} negate(%p)
  ROOT %far = f32[256]{0:T(256)} negate(%near)
}
""")
    assert hlo.memory_traffic(text) == 2 * 1024
