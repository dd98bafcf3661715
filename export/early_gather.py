"""A rewrite that saves a part of the last layer: computed there is only the token that the head reads.

A classifier of this kind reads one token of each text (the first; XLNet's the last). What follows the last attention
works on each token by itself, so that token can be picked before it instead of after: no answer changes, and of a model
of six layers an eighth of the arithmetic is gone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.int8.layers import array_of, name_nodes, replace_nodes, weights_of
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.session import Session

ELEMENTWISE = "Add BiasGelu Cast Div Dropout Erf FastGelu Gelu Identity Mul Pow QuickGelu Relu Sigmoid Sqrt Sub Tanh"
NORMALIZATIONS = {"LayerNormalization", "SimplifiedLayerNormalization"}
SKIP_NORMALIZATIONS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
BY_TOKEN = {*ELEMENTWISE.split(), *NORMALIZATIONS, *SKIP_NORMALIZATIONS}
"""Operators whose output at a token depends on their inputs at that token alone; MatMul by a constant is another."""
FIRST_OR_LAST = (0, -1, [0], [-1])
"""Indices of the head's token; each is right for one token as for all."""
TOLERANCE = 1e-5
"""How far logits may move by it: one row is multiplied by another kernel than many."""

Constants = Mapping[str, onnx.TensorProto]
"""By name."""


def with_early_gather(graph: Path, output: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> Path:
    """Write the rewritten graph and return where; if there is nothing to gain or it answers otherwise, the graph's own.

    Args:
        graph: a float graph, its weights in the file.
        output: where to write.
        batches: inputs [B, T] that both must answer alike.
    """
    model = onnx.load(graph)
    if not gather_early(model):
        return graph
    onnx.save(model, output)
    try:
        both = zip(_logits(graph, batches), _logits(output, batches), strict=True)
        alike = all(np.allclose(before, after, rtol=0, atol=TOLERANCE) for before, after in both)
    except (InputError, RuntimeError):  # ONNX Runtime cannot load or run it
        alike = False
    return output if alike else graph


def _logits(graph: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> list[NDArray[np.float32]]:
    session = Session(graph, num_threads=num_usable_cores())
    try:
        return [session.run(inputs) for inputs in batches]
    finally:
        session.close()


def gather_early(model: onnx.ModelProto) -> list[str]:
    """Pick the head's token as early as its values allow, in place; return the nodes that now work on it alone."""
    name_nodes(model)
    constants = _constants(model)
    for node in model.graph.node:
        if node.op_type != "Gather" or _axis(node, 0) != 1 or node.input[0] in constants:
            continue
        index = array_of(constants[node.input[1]]) if node.input[1] in constants else np.empty(0)
        if index.tolist() in FIRST_OR_LAST and (axes := _read_for_one_token(model, node, constants)):
            _move(model, axes, constants, int(index.item()))
            return list(axes)
    return []


def _read_for_one_token(model: onnx.ModelProto, gather: onnx.NodeProto, constants: Constants) -> dict[str, int]:
    """Return the nodes that work on each token by itself and are read for one token, and the axis of their inputs."""
    readers: dict[str, set[str]] = {value.name: {""} for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    axes = {gather.name: 1}
    for node in reversed(model.graph.node):  # readers come first
        read_by = {reader for name in node.output for reader in readers.get(name, ())}
        wanted = {axes.get(reader) for reader in read_by}
        axis = wanted.pop() if len(wanted) == 1 else None
        if axis is not None and node.op_type == "Transpose" and _swaps_batch_and_tokens(node):
            axes[node.name] = 1 - axis
        elif axis is not None and _is_by_token(node, constants):
            axes[node.name] = axis
    del axes[gather.name]
    return axes


def _move(model: onnx.ModelProto, axes: Mapping[str, int], constants: Constants, index: int) -> None:
    """Give nodes one token [B, 1, H] of what they read."""
    made = {name for node in model.graph.node if node.name in axes for name in node.output}
    which = "early_gather/index"
    model.graph.initializer.append(numpy_helper.from_array(np.array([index], np.int64), which))
    nodes: list[onnx.NodeProto] = []
    gathered: dict[str, str] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if node.name not in axes or not name or name in constants or name in made:
                continue
            if name not in gathered:
                gathered[name] = f"{name}/one_token"
                pick, axis = f"{name}/early_gather", axes[node.name]
                nodes.append(helper.make_node("Gather", [name, which], [gathered[name]], pick, axis=axis))
            node.input[place] = gathered[name]
        nodes.append(node)
    replace_nodes(model, nodes)


def _is_by_token(node: onnx.NodeProto, constants: Constants) -> bool:
    """Return whether a node's output at a token depends on its inputs at that token alone."""
    if node.op_type == "MatMul":
        return node.input[0] not in constants and node.input[1] in constants and len(constants[node.input[1]].dims) == 2
    if node.op_type in NORMALIZATIONS and _axis(node, -1) != -1:
        return False
    by_channel = all(max(constants[name].dims[:-1], default=1) == 1 for name in node.input if name in constants)
    return by_channel and node.op_type in BY_TOKEN


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constants of a graph, its Constant nodes among them."""
    found = weights_of(model)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "axis"), default)


def _swaps_batch_and_tokens(node: onnx.NodeProto) -> bool:
    return any(each.name == "perm" and list(each.ints) == [1, 0, 2] for each in node.attribute)
