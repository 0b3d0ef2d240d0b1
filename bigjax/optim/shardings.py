"""Where the optimizer's state lives: each moment with its parameter."""

from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def state_shardings(optimizer: optax.GradientTransformation, params: Any, shardings: Any) -> Any:
    """A NamedSharding for each leaf of `optimizer.init(params)`, as abstract evaluation derives it.

    params: arrays or abstract shapes; shardings: the same tree with NamedShardings of one mesh.

    On the Auto axes that we train on, jit would return moments replicated: zeros depend on no
    input. With Explicit axes the sharding is part of an array's type, and `zeros_like` keeps it;
    what is made from nothing, such as a step count, has none and is replicated.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    typed = AbstractMesh(
        mesh.axis_sizes, mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.axis_names)
    )
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(typed, sharding.spec)
        ),
        params,
        shardings,
    )
    with jax.sharding.use_abstract_mesh(typed):
        state = jax.eval_shape(optimizer.init, abstract)
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, leaf.sharding.spec if leaf.sharding else PartitionSpec()),
        state,
    )
