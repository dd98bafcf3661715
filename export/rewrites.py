"""Rewrites of a graph that save time and change no answer, and the tools they share with `export.int8`.

Early gather: a classifier's head reads one token of each text (the first; XLNet's the last). The operators after the
last attention work on each token separately, so that token can be picked before them: of a six-layer model an eighth of
the arithmetic is saved.

Layer normalization: on a CPU, ONNX Runtime's SkipLayerNormalization (bias + residual + normalization) is slow: on rows
of 384 numbers it took 4 to 7 times as long as Add followed by LayerNormalization (1.31 times on AVX-512), a fifth of an
integer graph's time. The bias costs nothing where the integer product before it can add it.

Smoothing: attention's output is linear in its values, so the scales and biases of the values can do the division of
its channels that the next integer product needs.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.graphs import external_files
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.session import Session

ELEMENTWISE = "Add BiasGelu Cast Div Dropout Erf FastGelu Gelu Identity Mul Pow QuickGelu Relu Sigmoid Sqrt Sub Tanh"
NORMALIZATIONS = {"LayerNormalization", "SimplifiedLayerNormalization"}
SKIP_NORMALIZATIONS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
BY_TOKEN = {*ELEMENTWISE.split(), *NORMALIZATIONS, *SKIP_NORMALIZATIONS}
"""Operators whose output at a token depends only on their inputs at that token, as does MatMul by a constant."""
FIRST_OR_LAST = (0, -1, [0], [-1])  # indices of the head's token that are also right when only that token is left
EARLY_INDEX = "early_gather/index"  # constant of the early gather: the head's token
TOLERANCE = 1e-5  # how far a logit may move: one row is multiplied by another kernel than many
SMOOTH = "/smooth"  # suffix of the nodes that divide a product's input by its divisors
MIN_OPSET = 17  # the standard operator set that introduced LayerNormalization
SUM_OUTPUT = 3  # output of SkipLayerNormalization that holds the sum before normalization
CORRECTION = 6  # input of MatMulIntegerToFloat that is added to its result
ATTENTION_BIAS, ATTENTION_SCALES = 2, 4  # inputs of QAttention: its bias, and the scales of its weight's columns

Constants = Mapping[str, onnx.TensorProto]  # name -> constant


# What the rewrites share.


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the initializers of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array_of(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """Return a constant as an array."""
    return np.asarray(numpy_helper.to_array(tensor))


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the graph's nodes; drop the constants that no node reads any more, and the recorded shapes."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # outlive the deletion below
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)


def rewritten(
    graph: Path,
    output: Path,
    rewrite: Callable[[onnx.ModelProto], object],
    batches: Sequence[Mapping[str, NDArray[np.int64]]],
    tolerance: float,
) -> bool:
    """Write a graph that `rewrite` changes in place, if it does; return whether it is as good as before.

    It is if both run on the CPU, with logits as close as `tolerance` for inputs [B, T].
    """
    model = onnx.load(graph)
    if not rewrite(model):
        return False
    output.parent.mkdir(exist_ok=True)
    onnx.save(model, output)
    logits = []
    try:
        for each in (graph, output):
            with contextlib.closing(Session(each, num_threads=num_usable_cores())) as session:
                logits.append([session.run(inputs) for inputs in batches])
    except (InputError, RuntimeError):  # ONNX Runtime cannot load or run it
        return False
    return all(np.allclose(before, after, rtol=0, atol=tolerance) for before, after in zip(*logits, strict=True))


# Early gather.


def with_early_gather(graph: Path, output: Path, batches: Sequence[Mapping[str, NDArray[np.int64]]]) -> Path:
    """Write a float graph whose last layers work only on the head's token, and return its path.

    Return the graph's own path if nothing can be saved, the answers would differ, or it is over 2 GB.

    Both graphs must answer alike on `batches` [B, T].
    """
    is_small = not external_files(graph)
    return output if is_small and rewritten(graph, output, gather_early, batches, TOLERANCE) else graph


def gather_early(model: onnx.ModelProto) -> list[str]:
    """Move the pick of the head's token as early as possible, in place; return the nodes that now see one token."""
    name_nodes(model)
    constants = _constants(model)
    for node in model.graph.node:
        axis = _axis(node, 0)  # 0 in XLNet, whose fused graph picks before it transposes
        if node.op_type != "Gather" or axis not in (0, 1) or node.input[0] in constants:
            continue
        index = array_of(constants[node.input[1]]) if node.input[1] in constants else np.empty(0)
        if index.tolist() in FIRST_OR_LAST and (axes := _read_for_one_token(model, node, axis, constants)):
            _move(model, axes, constants, int(index.item()))
            return list(axes)
    return []


def _read_for_one_token(
    model: onnx.ModelProto, gather: onnx.NodeProto, gather_axis: int, constants: Constants
) -> dict[str, int]:
    """Return the nodes that work token by token and are read only at the head's token -> token axis of their inputs."""
    readers: dict[str, set[str]] = {value.name: {""} for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.name)
    axes = {gather.name: gather_axis}
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
    """Insert a pick of one token [B, 1, H] before the nodes in `axes`."""
    made = {name for node in model.graph.node if node.name in axes for name in node.output}
    model.graph.initializer.append(numpy_helper.from_array(np.array([index], np.int64), EARLY_INDEX))
    nodes: list[onnx.NodeProto] = []
    gathered: dict[str, str] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if node.name not in axes or not name or name in constants or name in made:
                continue
            if name not in gathered:
                gathered[name] = f"{name}/one_token"
                pick, axis = f"{name}/early_gather", axes[node.name]
                nodes.append(helper.make_node("Gather", [name, EARLY_INDEX], [gathered[name]], pick, axis=axis))
            node.input[place] = gathered[name]
        nodes.append(node)
    replace_nodes(model, nodes)


def _is_by_token(node: onnx.NodeProto, constants: Constants) -> bool:
    """Return whether a node's output at a token depends only on its inputs at that token."""
    if node.op_type == "MatMul":
        return node.input[0] not in constants and node.input[1] in constants and len(constants[node.input[1]].dims) == 2
    if node.op_type in NORMALIZATIONS and _axis(node, -1) != -1:
        return False
    by_channel = all(max(constants[name].dims[:-1], default=1) == 1 for name in node.input if name in constants)
    return by_channel and node.op_type in BY_TOKEN


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = weights_of(model)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "axis"), default)


def _swaps_batch_and_tokens(node: onnx.NodeProto) -> bool:
    return any(each.name == "perm" and list(each.ints) == [1, 0, 2] for each in node.attribute)


# Layer normalization and smoothing.


def without_skip_layer_norms(graph: Path, output: Path) -> None:
    """Write a graph without SkipLayerNormalization."""
    model = onnx.load(graph)
    split_layer_norms(model)
    onnx.save(model, output)


def split_layer_norms(model: onnx.ModelProto) -> None:
    """Replace each SkipLayerNormalization of a graph by Add and LayerNormalization, in place."""
    if max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0) < MIN_OPSET:
        return
    weights = weights_of(model)
    products = {node.output[0]: node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"}
    readers = [name for node in model.graph.node for name in node.input]
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "SkipLayerNormalization" or any(node.output[1:SUM_OUTPUT]):
            nodes.append(node)
            continue
        value, residual, gamma, beta, bias = (list(node.input) + [""] * 5)[:5]
        if bias:
            product = products.get(value)
            correction = product.input[CORRECTION] if product and len(product.input) > CORRECTION else ""
            if product and correction in weights and bias in weights and readers.count(value) == 1:
                name = f"{product.name}/correction_and_bias"
                total = array_of(weights[correction]) + array_of(weights[bias])
                model.graph.initializer.append(numpy_helper.from_array(total, name))
                product.input[CORRECTION] = name
            else:
                nodes.append(helper.make_node("Add", [value, bias], [f"{node.name}/biased"], name=f"{node.name}/bias"))
                value = f"{node.name}/biased"
        has_sum = len(node.output) > SUM_OUTPUT and node.output[SUM_OUTPUT]
        total_name = node.output[SUM_OUTPUT] if has_sum else f"{node.name}/sum"
        epsilon = helper.get_node_attr_value(node, "epsilon")
        nodes += [
            helper.make_node("Add", [value, residual], [total_name], name=f"{node.name}/add"),
            helper.make_node(
                "LayerNormalization", [total_name, gamma, beta], [node.output[0]], name=node.name, epsilon=epsilon
            ),
        ]
    replace_nodes(model, nodes)


def fold_smoothing(model: onnx.ModelProto) -> None:
    """Fold the division after each QAttention into its constants where nothing else reads its output, in place."""
    weights = weights_of(model)
    attentions = {node.output[0]: node for node in model.graph.node if node.op_type == "QAttention"}
    readers = [name for node in model.graph.node for name in node.input]
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        attention = attentions.get(node.input[0]) if node.input else None
        if attention is None or not node.name.endswith(SMOOTH) or readers.count(node.input[0]) != 1:
            continue
        divisors = array_of(weights[node.input[1]])  # [H], inverse
        factors = np.ones(3 * len(divisors), np.float32)  # of queries, keys, values
        factors[-len(divisors) :] = divisors
        for place in (ATTENTION_BIAS, ATTENTION_SCALES):
            name = f"{attention.name}/folded_{place}"
            folded = array_of(weights[attention.input[place]]) * factors
            model.graph.initializer.append(numpy_helper.from_array(folded, name))
            attention.input[place] = name
        renamed[node.output[0]] = node.input[0]
    nodes = [node for node in model.graph.node if not renamed.keys() & set(node.output)]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    replace_nodes(model, nodes)
