"""Between a parameter of ours and the tensors of a file: names, shapes, and values of any slice.

Ours are [in, out]; kernels and biases of attention keep heads and their size as two axes, which
are one in files; stacked ones ('blocks/...') have the layers for first axis, which are as many
tensors. Files read `slices` only, so that a device's shard costs no more than itself.

Shapes: D width, H heads, C head size, L layers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bigjax.interop.families import Place, Places

Shape = tuple[int, ...]
Slices = tuple[slice, ...]

LEAVES = {'kernel': 'weight', 'embedding': 'weight', 'scale': 'weight', 'bias': 'bias'}
FLAT = {'kernel': 2, 'embedding': 2, 'scale': 1, 'bias': 1}
"""By the end of our name: what it is called in files, and how many axes it has there."""


class Tensor(NamedTuple):
    """One of a file. read: some slice of it, float32."""

    shape: Shape
    read: Callable[[Slices], np.ndarray]


Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A leaf of ours, or one layer of a stacked one, and where in a file it lies.

    name: of the tensor; shape: ours. kind: kernel, embedding, scale or bias.
    heads_axis: of the two axes that files have as one; None if there are none such.
    """

    name: str
    place: Place
    kind: str
    shape: Shape
    heads_axis: int | None

    @property
    def is_transposed(self) -> bool:
        return self.kind == 'kernel' and self.place.transposed

    @property
    def flat_shape(self) -> Shape:
        if (axis := self.heads_axis) is None:
            return self.shape
        heads, size = self.shape[axis : axis + 2]
        return (*self.shape[:axis], heads * size, *self.shape[axis + 2 :])

    @property
    def stored_shape(self) -> Shape:
        shape = (*self.flat_shape[:-1], self.flat_shape[-1] * self.place.parts)
        return shape[::-1] if self.is_transposed else shape

    def read(self, tensor: Tensor, index: Slices) -> np.ndarray:
        """The slice `index` of ours."""
        ranges = [range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True)]
        sizes = [len(part) for part in ranges]
        if (axis := self.heads_axis) is not None:  # whole heads, which no rule splits
            size = self.shape[axis + 1]
            sizes[axis + 1] = size
            ranges[axis : axis + 2] = [range(ranges[axis].start * size, ranges[axis].stop * size)]
        offset = self.place.part * self.flat_shape[-1]
        ranges[-1] = range(ranges[-1].start + offset, ranges[-1].stop + offset)
        slices = tuple(slice(part.start, part.stop) for part in ranges)
        values = tensor.read(slices[::-1]).T if self.is_transposed else tensor.read(slices)
        values = values.reshape(sizes)
        if self.place.paired:
            values = values.reshape(*sizes[:-1], -1, 2).swapaxes(-1, -2).reshape(sizes)
        return values

    def written(self, values: np.ndarray) -> np.ndarray:
        """Ours as it lies in a file; one of `place.parts`."""
        flat = values.reshape(self.flat_shape)
        return flat.T if self.is_transposed else flat


def parts(name: str, shape: Shape, places: Places) -> list[Part]:
    """Of the leaf `name` of ours: one, or as many as layers; none where the table has no such."""
    module, _, leaf = name.rpartition('/')
    kind = leaf.removeprefix('head_')  # of head_bias, which has no module
    block = re.match(r'block(s|_(\d+))(?=/)', module)
    key = module.replace(block[0], 'block', 1) if block else module
    if key not in places or kind not in LEAVES:
        return []
    stacked = block is not None and block[2] is None
    layers = range(shape[0]) if stacked else [block[2] if block else '']
    shape = shape[1:] if stacked else shape
    place = places[key]
    merged = len(shape) > FLAT[kind]
    out = kind == 'bias' or key.endswith('/out')  # [H, C] or [H, C, D]; others are [D, H, C]
    axis = (0 if out else 1) if merged else None
    return [
        Part(f'{place.module.format(layer)}.{LEAVES[kind]}', place, kind, shape, axis)
        for layer in layers
    ]


def read(found: list[Part], tensors: Tensors, shape: Shape, index: Slices) -> np.ndarray:
    """The slice `index` of a leaf of ours, of all the parts that it has."""
    if len(shape) == len(found[0].shape):
        return found[0].read(tensors[found[0].name], index)
    layers = range(*index[0].indices(shape[0]))
    return np.stack([found[i].read(tensors[found[i].name], index[1:]) for i in layers])


def layers(found: list[Part], values: np.ndarray) -> list[np.ndarray]:
    """A leaf of ours as the values of its parts."""
    return list(values) if found and values.ndim > len(found[0].shape) else [values]
