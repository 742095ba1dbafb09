"""Pickles of PyTorch's state dicts, read by a machine that can make tensors and nothing else.

Nothing is imported and nothing is called: the few names that a state dict may use stand for values
of this module, and every other name, and every instruction that a state dict has no use for, is
refused. So a hostile file can give wrong numbers, and no more.
"""

import io
import pickletools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""The types of `torch.NAMEStorage`."""

_MAKERS = {
    "collections OrderedDict": "dict",
    "torch._utils _rebuild_tensor_v2": "tensor",
    "torch._utils _rebuild_parameter": "parameter",
}
_MARK = object()


class Name(NamedTuple):
    """What a pickle may name, as a word: of `_MAKERS`, or a storage's."""

    word: str


class Storage(NamedTuple):
    """A row of numbers that lies elsewhere in the file."""

    key: str
    dtype: Any
    size: int
    """How many numbers."""


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Steps to the next, counted in numbers, as the offset is."""

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The tensor as an array of its own, by the numbers of the whole storage.

        Raises:
          ValueError: it reaches beyond them, or repeats them.
        """
        whole = [*self.shape, *self.strides, self.offset]
        if len(self.shape) != len(self.strides) or len(self.shape) > 8 or min(whole) < 0:
            raise ValueError(f"a tensor has shape {self.shape} and strides {self.strides}")
        count, last = 1, self.offset  # of Python's integers, which do not overflow
        for size, stride in zip(self.shape, self.strides, strict=True):
            count, last = count * size, last + max(0, size - 1) * stride
        if count and (last >= len(numbers) or count > len(numbers)):
            raise ValueError(f"a tensor of shape {self.shape} reaches beyond its numbers")
        if not count:
            return np.zeros(self.shape, numbers.dtype)
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides).copy()


def load(file: io.BytesIO) -> Any:
    """The value of one pickle, of numbers, texts, tuples, lists, dicts and `Tensor`s.

    Args:
      file: bytes in memory, so that no length that the pickle tells is believed; what follows
        the pickle is left to be read.

    Raises:
      ValueError: it is damaged, or asks for anything else.
    """
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            return machine.pop()
        machine.take(opcode.name, argument)
    raise ValueError("it ends too early")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        else:
            raise ValueError(f"it holds the instruction {name}, which no state dict needs")

    def pop(self, kind: type = object) -> Any:
        """Takes the top of the stack, of this type."""
        if not self.stack or not isinstance(self.stack[-1], kind) or self.stack[-1] is _MARK:
            raise ValueError("its instructions do not fit together")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Takes what is above the mark, and the mark."""
        try:
            at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        except ValueError as error:
            raise ValueError("its instructions do not fit together") from error
        above = self.stack[at + 1 :]
        del self.stack[at:]
        return above

    def tuple_of(self, count: int) -> None:
        """Makes a tuple of what is on top."""
        self.stack.append(tuple(self.pop() for _ in range(count))[::-1])

    def name(self, words: str) -> None:
        """Puts a name on the stack, if it is one of those that are known."""
        storage = words.removeprefix("torch ")
        if words not in _MAKERS and (storage == words or storage not in STORAGES):
            raise ValueError(f"it names {words.replace(' ', '.')!r}, which is no tensor")
        self.stack.append(Name(_MAKERS.get(words, storage)))

    def stack_name(self, _: Any) -> None:
        """The same of two texts on the stack."""
        name, module = self.pop(str), self.pop(str)
        self.name(f"{module} {name}")

    def storage(self, _: Any) -> None:
        """A tuple becomes the storage that it tells of."""
        kind, name, key, _, size, *views = self.pop(tuple)
        known = isinstance(name, Name) and name.word in STORAGES
        if kind != "storage" or not known or type(key) is not str or type(size) is not int:
            raise ValueError("it refers to what is no storage")
        if size < 0 or any(view is not None for view in views):
            raise ValueError("it holds a view of a storage, as only very old files do")
        self.stack.append(Storage(key, STORAGES[name.word], size))

    def make(self, _: Any) -> None:
        """A name and its arguments become a dict or a tensor."""
        arguments, name = self.pop(tuple), self.pop(Name)
        if name.word == "dict" and not arguments:
            self.stack.append({})
        elif name.word == "parameter" and arguments and isinstance(arguments[0], Tensor):
            self.stack.append(arguments[0])
        elif name.word == "tensor" and len(arguments) >= 4:
            self.stack.append(_tensor(*arguments[:4]))
        else:
            raise ValueError("it makes what is no tensor")

    def append(self, values: list[Any]) -> None:
        """Adds to the list below."""
        into = self.pop(list)
        into.extend(values)
        self.stack.append(into)

    def set(self, pairs: list[Any]) -> None:
        """Adds to the dict below; its keys are texts."""
        into = self.pop(dict)
        keys, values = pairs[::2], pairs[1::2]
        if len(keys) != len(values) or any(type(key) is not str for key in keys):
            raise ValueError("it holds a dict whose keys are no texts")
        into.update(zip(keys, values, strict=True))
        self.stack.append(into)

    def remember(self, place: int) -> None:
        """Notes the top of the stack in the memo."""
        self.memo[place] = self.pop()
        self.stack.append(self.memo[place])

    def recall(self, place: int) -> None:
        """Puts what was noted on the stack."""
        if place not in self.memo:
            raise ValueError("it refers to what it has not noted")
        self.stack.append(self.memo[place])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    whole = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or any(type(number) is not int for number in whole):
        raise ValueError("it makes what is no tensor")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_CONSTANTS: dict[str, Any] = {
    "MARK": lambda: _MARK, "NONE": lambda: None, "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
)  # fmt: skip
_INSTRUCTIONS: dict[str, Any] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.make,
    "BUILD": lambda machine, _: machine.pop(dict),  # attributes of a dict, its `_metadata`
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set(machine.pop_to_mark()),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
}
