"""Exchanges read from programs: from lines as TPU and CPU compilers write them, and from a program of this machine."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.planning.collectives import Collective, collectives

PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], bf16[4,6])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], bf16[4,6])) -> (s32[], bf16[4,6]) {
  %all-reduce.1 = bf16[4,6]{1,0:T(8,128)} all-reduce(%x), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %all-reduce.2 = f32[16]{0} all-reduce(%y), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add
  %piece = bf16[4,8] fusion(%z), kind=kLoop, calls=%start
  %rest = bf16[4,8] fusion(%z), kind=kLoop, calls=%done
}

%start (p: bf16[4,2]) -> bf16[4,8] {
  ROOT %all-gather.1 = bf16[4,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
}

%done (p: bf16[4,2]) -> bf16[4,8] {
  ROOT %all-gather.2 = bf16[4,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={1}
}

ENTRY %main (x: bf16[4,6]) -> bf16[4,6] {
  %loop = (s32[], bf16[4,6]) while(%init), condition=%condition, body=%body, metadata={op_name="while"}
  %known = (s32[], bf16[4,6]) while(%init), condition=%add, body=%start, backend_config={"known_trip_count":{"n":"3"}}
  %gather = (f32[2]{0}, f32[16]{0}) all-gather-start(%g), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}
  %scatter = f32[2]{0} reduce-scatter(%g), channel_id=10, replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_lines_of_a_program():
    found = {(one.kind, one.group, one.size): one.times for one in collectives(PROGRAM)}
    assert found == {
        ("all-reduce", 4, 48): 28,
        ("all-reduce", 8, 64): 28,
        ("all-gather", 4, 64): 28,  # once for both pieces; the loop that runs it most
        ("all-gather", 8, 64): 1,
        ("reduce-scatter", 2, 16): 1,
    }


@pytest.mark.parametrize(
    ("kind", "sent"), [("all-reduce", 1.5), ("all-gather", 0.75), ("reduce-scatter", 0.75), ("collective-permute", 1)]
)
def test_bytes_in_a_ring(kind, sent):
    assert Collective(kind=kind, group=4, size=1000, times=3).sent == 3000 * sent


def test_a_program_of_this_machine():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def loop(x, m):
        return jax.lax.scan(lambda c, _: (c + jnp.sum(x @ m @ c), None), jnp.zeros((4, 2)), length=5)[0]

    shapes = (jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=rows),)
    shapes += (jax.ShapeDtypeStruct((3, 4), jnp.float32, sharding=whole),)
    found = collectives(jax.jit(loop, out_shardings=whole).lower(*shapes).compile().as_text())
    assert [(one.kind, one.group, one.size, one.times) for one in found] == [("all-reduce", 8, 4, 5)]
