"""A JAX function as an ONNX graph, equation by equation of its trace.

What depends on constants alone is computed while the graph is made. The first dimension of the
input may stay open, and so may what is a multiple of it. Values are those of the JAX function up to
rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from tvjax.types import Dimension

OPSET, IR_VERSION = 18, 9
"""What ONNX 1.14 (2023) has: readers as old as that take the files."""

MOST_UNROLLED = 64
"""Steps of the longest loop that is written out."""


class Unsupported(ValueError):
    """What a graph cannot hold; the message says what, in words."""


def convert(function: Callable, shape: Sequence[int | str], names: tuple[str, str]) -> Any:
    """The `onnx.ModelProto` of a function of one float32 array.

    Args:
      function: takes an array of this shape and returns one array.
      shape: sizes of the input; the first may be a name, and stays open then.
      names: what the input and the output are called.

    Raises:
      Unsupported: the function does what a graph cannot hold.
      ImportError: the package onnx is not installed.
    """
    import onnx
    from onnx import TensorProto, helper

    sizes = [jax.export.symbolic_shape(n)[0] if isinstance(n, str) else n for n in shape]
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(sizes, jnp.float32))
    graph = Graph(sizes[0], names[0])
    (found,) = graph.run(closed.jaxpr, closed.consts, [names[0]])
    graph.node("Identity", [graph.named(found)], output=names[1])

    def value(name: str, aval: Any) -> Any:
        dims = [d if isinstance(d, int) else str(d) for d in aval.shape]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    graph.prune(names[1])
    made = helper.make_graph(
        graph.nodes, "net", [value(names[0], closed.in_avals[0])],
        [value(names[1], closed.out_avals[0])], graph.constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


class Graph:
    """Nodes and constants so far; a value is the name of a node's output, or an array."""

    def __init__(self, batch: Dimension, given: str):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.batch = batch
        self.given = given

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Adds the equations of a trace; returns the values of its outputs."""
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            outputs = self._equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if name == "scan":
            return self._scan(params, inputs)
        if inner is not None and not name.startswith("while"):
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
        is_open = any(not isinstance(d, int) for v in equation.outvars for d in v.aval.shape)
        if not is_open and not any(isinstance(value, str) for value in inputs):
            found = equation.primitive.bind(*inputs, **params)
            return list(found) if equation.primitive.multiple_results else [found]
        if name not in RULES:
            raise Unsupported(f"ONNX has no {name}")
        return [RULES[name](self, equation, inputs)]

    def _scan(self, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        """A loop that carries values and neither reads nor writes rows, written out."""
        fixed, carried = params["num_consts"], params["num_carry"]
        closed = params["jaxpr"]
        rows = len(inputs) > fixed + carried or len(closed.jaxpr.outvars) > carried
        if rows or params["length"] > MOST_UNROLLED:
            raise Unsupported(f"ONNX has no such loop of {params['length']} steps")
        for _ in range(params["length"]):
            inputs[fixed:] = self.run(closed.jaxpr, closed.consts, inputs)
        return inputs[fixed:]

    def node(self, kind: str, inputs: Sequence[Any], *, output: str = "", **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        from onnx import helper

        output = output or f"v{len(self.nodes)}"
        names = [self.named(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def named(self, value: Any) -> str:
        """The name of a value; an array becomes a constant of the graph."""
        from onnx import numpy_helper

        if isinstance(value, str):
            return value
        name = f"c{len(self.constants)}"
        array = np.asarray(value)
        element_type(array.dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def prune(self, output: str) -> None:
        """Leaves out what the output does not depend on."""
        needed, nodes = {output}, []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                nodes.append(node)
                needed.update(node.input)
        self.nodes = nodes[::-1]
        self.constants = [constant for constant in self.constants if constant.name in needed]

    def reshape(self, value: Any, shape: Sequence[Dimension]) -> str:
        """The value in another shape, of which one size may be open."""
        return self.node("Reshape", [value, integers(d if _fixed(d) else -1 for d in shape)])

    def sizes(self, shape: Sequence[Dimension]) -> Any:
        """A shape as a vector of integers; open sizes are multiples of the batch's."""
        if all(map(_fixed, shape)):
            return integers(shape)
        batch = self.node("Shape", [self.given], start=0, end=1)
        parts = [integers([d if _fixed(d) else d // self.batch]) for d in shape]
        parts = [
            part if _fixed(d) else self.node("Mul", [batch, part])
            for d, part in zip(shape, parts, strict=True)
        ]
        return self.node("Concat", parts, axis=0)


def element_type(dtype: Any) -> int:
    """ONNX's number of a type.

    Raises:
      Unsupported: runtimes do not compute in it.
    """
    from onnx import helper

    if np.dtype(dtype).name not in ("float32", "float64", "int32", "int64", "uint8", "bool"):
        raise Unsupported(f"ONNX runtimes do not compute in {np.dtype(dtype).name}")
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def integers(values: Any) -> np.ndarray:
    """A vector of int64, as ONNX has shapes and axes."""
    return np.array([int(value) for value in values], np.int64)


def _fixed(dimension: Dimension) -> bool:
    return isinstance(dimension, int)


def _shape(equation: Any, at: int = 0) -> tuple[Dimension, ...]:
    return equation.invars[at].aval.shape


def _same(kind: str) -> Callable:
    """The rule of an operation that ONNX has too."""
    return lambda graph, equation, inputs: graph.node(kind, inputs)


def _reduce(kind: str) -> Callable:
    def rule(graph: Graph, equation: Any, inputs: list[Any]) -> str:
        return graph.node(kind, [inputs[0], integers(equation.params["axes"])], keepdims=0)

    return rule


def _reshape(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    return graph.reshape(inputs[0], equation.outvars[0].aval.shape)


def _broadcast(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    given = dict(zip(places, _shape(equation), strict=True))
    spread = [given.get(axis, 1) for axis in range(len(shape))]
    value = graph.reshape(inputs[0], spread)
    return value if spread == list(shape) else graph.node("Expand", [value, graph.sizes(shape)])


def _iota(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if not _fixed(shape[axis]):
        raise Unsupported("ONNX counts no images")
    row = np.arange(shape[axis], dtype=equation.params["dtype"])
    spread = row.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return graph.node("Expand", [spread, graph.sizes(shape)])


def _transpose(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    return graph.node("Transpose", inputs, perm=list(equation.params["permutation"]))


def _cut(graph: Graph, value: Any, starts: Any, ends: Any, steps: Any = None) -> str:
    def place(at: Dimension) -> int:
        """Counted from the end where that is open."""
        return at if _fixed(at) else int(at - graph.batch) or np.iinfo(np.int64).max

    starts, ends = (integers(map(place, places)) for places in (starts, ends))
    steps, axes = [1] * len(ends) if steps is None else steps, range(len(ends))
    return graph.node("Slice", [value, starts, ends, integers(axes), integers(steps)])


def _slice(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    p = equation.params
    return _cut(graph, inputs[0], p["start_indices"], p["limit_indices"], p["strides"])


def _gather(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    """A gather that cuts out one block, as a slice of an array with open sizes is."""
    at, numbers = inputs[1], equation.params["dimension_numbers"]
    if isinstance(at, str) or np.ndim(at) != 1 or numbers.operand_batching_dims:
        raise Unsupported("ONNX has no gather like this")
    sizes = equation.params["slice_sizes"]
    starts = [0] * len(sizes)
    for axis, start in zip(numbers.start_index_map, np.asarray(at), strict=True):
        starts[axis] = int(start)
    pairs = zip(starts, sizes, _shape(equation), strict=True)
    ends = [start + n if _fixed(n) else whole for start, n, whole in pairs]
    return graph.reshape(_cut(graph, inputs[0], starts, ends), equation.outvars[0].aval.shape)


def _concatenate(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    axis = equation.params["dimension"]
    shapes = (_shape(equation, i) for i in range(len(inputs)))
    filled = [x for x, shape in zip(inputs, shapes, strict=True) if shape[axis] != 0]
    return graph.node("Concat", filled, axis=axis)


def _pad(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior):
        raise Unsupported("ONNX has no padding between pixels")
    return graph.node("Pad", [inputs[0], integers([*low, *high]), inputs[1]])


def _select(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    which, *cases = inputs
    if len(cases) != 2:
        raise Unsupported(f"ONNX has no choice among {len(cases)}")
    return graph.node("Where", [which, *cases[::-1]])


def _cast(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    return graph.node("Cast", inputs, to=element_type(equation.params["new_dtype"]))


def _power(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    dtype = equation.invars[0].aval.dtype
    return graph.node("Pow", [inputs[0], np.asarray(equation.params["y"], dtype)])


def _erfc(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    one = np.ones((), equation.invars[0].aval.dtype)
    return graph.node("Sub", [one, graph.node("Erf", inputs)])


def _dot(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(letters) for _ in _shape(equation)]
    second = [next(letters) for _ in _shape(equation, 1)]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        second[j] = first[i]
    batch = [first[i] for i in left_batch]
    free = [a for a in first if a not in second] + [a for a in second if a not in first]
    terms = "".join(first), "".join(second), "".join(batch + free)
    if not batch and terms == ("ab", "bc", "ac"):
        return graph.node("MatMul", inputs)
    return graph.node("Einsum", inputs, equation="{},{}->{}".format(*terms))


def _convolution(graph: Graph, equation: Any, inputs: list[Any]) -> str:
    p = equation.params
    lhs, rhs, out = p["dimension_numbers"]
    if isinstance(inputs[1], str) or p["batch_group_count"] > 1 or set(p["lhs_dilation"]) != {1}:
        raise Unsupported("ONNX has no convolution like this")
    low, high = zip(*p["padding"], strict=True)
    y = graph.node(
        "Conv",
        [graph.node("Transpose", inputs[:1], perm=list(lhs)), np.transpose(inputs[1], rhs)],
        strides=p["window_strides"], dilations=p["rhs_dilation"], pads=[*low, *high],
        group=p["feature_group_count"],
    )  # fmt: skip
    return graph.node("Transpose", [y], perm=[int(axis) for axis in np.argsort(out)])


RULES: dict[str, Callable[[Graph, Any, list[Any]], str]] = {
    "add": _same("Add"), "sub": _same("Sub"), "mul": _same("Mul"), "div": _same("Div"),
    "max": _same("Max"), "min": _same("Min"), "neg": _same("Neg"), "abs": _same("Abs"),
    "exp": _same("Exp"), "log": _same("Log"), "logistic": _same("Sigmoid"), "tanh": _same("Tanh"),
    "sqrt": _same("Sqrt"), "sign": _same("Sign"), "erf": _same("Erf"), "erfc": _erfc,
    "rsqrt": lambda graph, _, inputs: graph.node("Reciprocal", [graph.node("Sqrt", inputs)]),
    "square": lambda graph, _, inputs: graph.node("Mul", inputs * 2), "integer_pow": _power,
    "eq": _same("Equal"), "lt": _same("Less"), "le": _same("LessOrEqual"),
    "ne": lambda graph, _, inputs: graph.node("Not", [graph.node("Equal", inputs)]),
    "gt": _same("Greater"), "ge": _same("GreaterOrEqual"), "and": _same("And"), "or": _same("Or"),
    "not": _same("Not"), "stop_gradient": _same("Identity"), "copy": _same("Identity"),
    "copy_p": _same("Identity"), "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"), "reduce_sum": _reduce("ReduceSum"), "reshape": _reshape,
    "squeeze": _reshape, "expand_dims": _reshape, "broadcast_in_dim": _broadcast, "iota": _iota,
    "transpose": _transpose, "slice": _slice, "gather": _gather, "concatenate": _concatenate,
    "pad": _pad, "select_n": _select, "convert_element_type": _cast, "dot_general": _dot,
    "conv_general_dilated": _convolution,
}  # fmt: skip
"""`(graph, equation, inputs) -> output`, by the names of JAX's primitives."""
