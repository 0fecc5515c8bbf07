"""The state of the pickle machine, and everything it will do with it.

Python's own unpickler calls whatever a pickle names. This machine never imports, never looks up an attribute, never
calls anything but the constructors it was given, does not recurse, and pays for every value out of a fixed budget, so
hostile lengths and endless programs end in an error that names the reason.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamway.errors import CheckpointError, UnsafePickleError
from streamway.weights.windows import ByteWindow
from streamway.weights.wording import show_name

MEMORY_BUDGET_BYTES = 512 * 1024 * 1024
"""Estimated memory that one pickle may take; 100,000 tensors take about 150 MiB of it."""

_HEAD_COST = 40
_LINE_LIMIT = 1024 * 1024
KEY_LIMIT = 1 << 60
"""Larger whole numbers collide at will as keys, because their hash is what is left of them after a division."""
_NUMBERS = {form: struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q")}

SAFE_FORMAT_STEP = (
    "Ask the model's owner for safetensors, or save again, where the file is trusted, only the weights: "
    "torch.save(model.state_dict(), ...)."
)


@dataclass(frozen=True, slots=True)
class Constructor:
    """Something that a pickle may call: `build` gets its arguments, and is ours."""

    name: str
    build: Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that weights do not need; only what it was is kept."""

    what: str


class OrderedMapping(dict[Any, Any]):
    """An OrderedDict, whose attributes (torch's `_metadata`) are accepted and dropped."""


class KeyedTuple(tuple[Any, ...]):
    """A tuple as a key. Python's hash of a tuple of numbers has no secret, so that any number of them can be made that
    collide, and a dict of those takes time that grows with its square; its hash of text has one.
    """

    def __hash__(self) -> int:
        return hash(repr(self))


class Vocabulary(Protocol):
    """What a kind of pickle may name."""

    def find_global(self, module: str, name: str) -> Any:
        """Return the value that stands for `module.name`, or None where it is not allowed."""

    def explain(self, module: str, name: str) -> str:
        """Return one more sentence on why a name is refused, or an empty string."""

    def load_persistent(self, identifier: Any) -> Any:
        """Return the value that a persistent id stands for."""


class Machine:
    """The pickle machine's stack, marks and memo."""

    def __init__(self, window: ByteWindow, vocabulary: Vocabulary, subject: str, budget: int) -> None:
        self.window = window
        self.vocabulary = vocabulary
        self.subject = subject
        self.budget = budget
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def finish(self) -> Any:
        if self.outer or len(self.stack) != 1:
            raise self.malformed(f"ends with {len(self.stack)} values on its stack, expected 1")
        return self.stack[0]

    def spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise CheckpointError(
                f"{self.subject}: its pickle is too large to be a list of tensors (it was stopped at offset "
                f"{self.window.offset:,}, when its values had taken what is allowed).",
                next_step=SAFE_FORMAT_STEP,
            )

    def malformed(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.subject}: its pickle {what}.",
            next_step="Download the file again; if it is the same, ask the model's owner for safetensors.",
        )

    def unsafe(self, what: str, more: str = "") -> UnsafePickleError:
        detail = f" {more}" if more else ""
        return UnsafePickleError(
            f"{self.subject}: its pickle asks for {what}, which building tensors never needs.{detail} "
            "Nothing was executed.",
            next_step=SAFE_FORMAT_STEP,
        )

    # Stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise self.malformed(f"takes a value from an empty stack at offset {self.window.offset:,}")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise self.malformed(f"looks at an empty stack at offset {self.window.offset:,}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.outer:
            raise self.malformed(f"closes a group that it never opened at offset {self.window.offset:,}")
        values = self.stack
        self.stack = self.outer.pop()
        return values

    # Reading

    def take_bytes(self, length: int) -> bytes:
        if length < 0:
            raise self.malformed(f"announces {length} bytes at offset {self.window.offset:,}")
        self.spend(_HEAD_COST + length)
        return self.window.take(length)

    def take_text(self, length: int) -> str:
        return self.decode(self.take_bytes(length))

    def decode(self, raw: bytes) -> str:
        try:
            return str(raw, "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.malformed(f"has a string that is not UTF-8 before offset {self.window.offset:,}") from error

    def take_line(self, limit: int = _LINE_LIMIT) -> bytes:
        line = self.window.take_line(limit)
        self.spend(_HEAD_COST + len(line))
        return line

    def number(self, form: str) -> int:
        layout = _NUMBERS[form]
        return int(layout.unpack(self.window.take(layout.size))[0])

    # Containers

    def key(self, value: Any) -> Any:
        """Let through only keys that hash in constant time and do not collide at will."""
        if value is None or type(value) in (str, bytes, bool, float, complex):
            return value
        if type(value) is int and -KEY_LIMIT < value < KEY_LIMIT:
            return value
        if type(value) is tuple and len(value) <= 16 and all(type(item) in (str, int, bool) for item in value):
            return KeyedTuple(self.key(item) for item in value)
        raise self.malformed(f"uses a {type(value).__name__} as a key before offset {self.window.offset:,}")

    def put_items(self, target: Any, flat: Sequence[Any]) -> None:
        if not isinstance(target, dict):
            raise self.unsafe(f"an item assignment to a {type(target).__name__}")
        if len(flat) % 2:
            raise self.malformed("has a key without a value")
        self.spend(50 * len(flat))
        for index in range(0, len(flat), 2):
            target[self.key(flat[index])] = flat[index + 1]

    def extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is not list:
            raise self.unsafe(f"an append to a {type(target).__name__}")
        self.spend(8 * len(values))
        target.extend(values)

    def add_items(self, target: Any, values: list[Any]) -> None:
        if type(target) is not set:
            raise self.unsafe(f"adding elements to a {type(target).__name__}")
        self.spend(80 * len(values))
        target.update(self.key(value) for value in values)

    def push_tuple(self, values: list[Any]) -> None:
        self.spend(40 + 8 * len(values))
        self.push(tuple(values))

    # Names and calls

    def push_global(self, module: str, name: str) -> None:
        found = self.vocabulary.find_global(module, name)
        if found is None:
            raise self.unsafe(show_name(f"{module}.{name}"), self.vocabulary.explain(module, name))
        self.push(found)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Constructor):
            raise self.unsafe(f"a call of a {type(function).__name__}")
        if type(arguments) is not tuple:
            raise self.malformed(f"calls {function.name} with a {type(arguments).__name__} as its arguments")
        self.spend(100)
        try:
            self.push(function.build(arguments))
        except (TypeError, ValueError, KeyError, IndexError, UnicodeError, OverflowError) as error:
            raise self.malformed(f"calls {function.name} with arguments that do not fit it: {error}") from error

    def build(self) -> None:
        self.pop()
        target = self.top()
        if not isinstance(target, OrderedMapping | Opaque):
            raise self.unsafe(f"attributes to be set on a {type(target).__name__}")

    def load_persistent(self) -> None:
        self.spend(100)
        try:
            self.push(self.vocabulary.load_persistent(self.pop()))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise self.malformed(f"refers to a storage in a way that torch does not: {error}") from error

    # Memo

    def remember(self, index: int) -> None:
        if not 0 <= index < KEY_LIMIT:
            raise self.malformed(f"stores a value under the number {index}")
        self.spend(100)
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.malformed(f"recalls value {index}, which it never stored")
        self.push(self.memo[index])
