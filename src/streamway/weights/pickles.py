"""A pickle machine that can build plain data and nothing else, so that no checkpoint can run code here.

Python's own unpickler calls whatever a pickle names. This one interprets the opcodes itself: it never imports, never
looks up an attribute, never calls anything but the constructors it was given, does not recurse, and pays for every
value out of a fixed budget, so hostile lengths and endless programs end in an error that names the reason.

The opcodes are those of protocols 0 to 5, as documented in CPython's `Lib/pickletools.py`.
"""

import codecs
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamway.errors import CheckpointError, UnsafePickleError
from streamway.weights.windows import ByteWindow

MEMORY_BUDGET_BYTES = 512 * 1024 * 1024
"""Estimated memory that one pickle may take; 100,000 tensors take about 150 MiB of it."""

_STEP_COST = 32
_LINE_LIMIT = 1024 * 1024
_NUMBER_LINE_LIMIT = 400
_LONG_LIMIT = 1024
_KEY_LIMIT = 1 << 60

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


class Vocabulary(Protocol):
    """What a kind of pickle may name."""

    def find_global(self, module: str, name: str) -> Any:
        """Return the value that stands for `module.name`, or None where it is not allowed."""

    def explain(self, module: str, name: str) -> str:
        """Return one more sentence on why a name is refused, or an empty string."""

    def load_persistent(self, identifier: Any) -> Any:
        """Return the value that a persistent id stands for."""


def show_name(text: str, limit: int = 160) -> str:
    """Make a name from a hostile file fit for a message: one line, printable, short."""
    printable = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return printable if len(printable) <= limit else f"{printable[:limit]}..."


def read_pickle(
    window: ByteWindow, vocabulary: Vocabulary, *, subject: str, budget_bytes: int = MEMORY_BUDGET_BYTES
) -> Any:
    """Read one pickle from a window, and leave the window after its last byte.

    Args:
        window: Where the pickle starts.
        vocabulary: What it may name.
        subject: The file, for messages.
        budget_bytes: Estimated memory that its values may take.

    Raises:
        UnsafePickleError: it names something that is not allowed, or uses an opcode that makes objects at will.
        CheckpointError: it is malformed, or larger than the budget.
    """
    return _Machine(window, vocabulary, subject, budget_bytes).run()


class _Machine:
    """The pickle machine's stack, marks and memo."""

    def __init__(self, window: ByteWindow, vocabulary: Vocabulary, subject: str, budget: int) -> None:
        self.window = window
        self.vocabulary = vocabulary
        self.subject = subject
        self.budget = budget
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        first = self.window.offset
        while True:
            at = self.window.offset
            opcode = self.window.take(1)[0]
            self.spend(_STEP_COST)
            if opcode == _STOP:
                return self.finish()
            if opcode == _PROTO and at != first:
                raise self.malformed("declares its protocol in the middle")
            step = _STEPS.get(opcode)
            if step is None:
                raise self.malformed(f"has the unknown opcode 0x{opcode:02x} at offset {at:,}")
            step(self)

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
        self.spend(length)
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
        self.spend(len(line))
        return line

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.window.take(struct.calcsize(form)))[0])

    # Containers

    def key(self, value: Any) -> Any:
        """Let through only keys that hash in constant time and do not collide at will."""
        if value is None or type(value) in (str, bytes, bool, float, complex):
            return value
        if type(value) is int and -_KEY_LIMIT < value < _KEY_LIMIT:
            return value
        if type(value) is tuple and len(value) <= 16 and all(type(item) in (str, int, bool) for item in value):
            return tuple(self.key(item) for item in value)
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
        if index < 0:
            raise self.malformed(f"stores a value under the number {index}")
        self.spend(100)
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.malformed(f"recalls value {index}, which it never stored")
        self.push(self.memo[index])


_Step = Callable[[_Machine], None]
_STOP, _PROTO = ord("."), 0x80


def _proto(machine: _Machine) -> None:
    version = machine.window.take(1)[0]
    if version > 5:
        raise machine.malformed(f"has protocol {version}, expected 0 to 5")


def _frame(machine: _Machine) -> None:
    length = machine.number("<Q")
    if length > machine.window.remaining:
        raise machine.malformed(f"announces a frame of {length:,} bytes where {machine.window.remaining:,} are left")


def _mark(machine: _Machine) -> None:
    machine.spend(56)
    machine.outer.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack or not machine.outer:
        machine.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: _Machine) -> None:
    machine.pop_mark()


def _int_line(machine: _Machine) -> None:
    text = machine.take_line(_NUMBER_LINE_LIMIT)
    if text in (b"00", b"01"):
        machine.push(text == b"01")
    else:
        machine.push(_parse_number(machine, text, int))


def _long_line(machine: _Machine) -> None:
    machine.push(_parse_number(machine, machine.take_line(_NUMBER_LINE_LIMIT).removesuffix(b"L"), int))


def _float_line(machine: _Machine) -> None:
    machine.push(_parse_number(machine, machine.take_line(_NUMBER_LINE_LIMIT), float))


def _parse_number(machine: _Machine, text: bytes, kind: Callable[[bytes], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise machine.malformed(f"has {show_name(repr(text), 40)} where a number should be") from error


def _long(machine: _Machine, length: int) -> None:
    if length < 0 or length > _LONG_LIMIT:
        raise machine.malformed(f"has an integer of {length:,} bytes, expected at most {_LONG_LIMIT:,}")
    machine.push(int.from_bytes(machine.take_bytes(length), "little", signed=True))


def _quoted_line(machine: _Machine) -> None:
    text = machine.take_line()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise machine.malformed("has a string without quotes")
    try:
        raw, _ = codecs.escape_decode(text[1:-1])
    except ValueError as error:
        raise machine.malformed("has a string with a broken escape") from error
    machine.push(machine.decode(raw))


def _unicode_line(machine: _Machine) -> None:
    text = machine.take_line()
    try:
        machine.push(str(text, "raw-unicode-escape"))
    except UnicodeDecodeError as error:
        raise machine.malformed("has a string with a broken escape") from error


def _dict_from_mark(machine: _Machine) -> None:
    made: dict[Any, Any] = {}
    machine.put_items(made, machine.pop_mark())
    machine.push(made)


def _list_from_mark(machine: _Machine) -> None:
    made: list[Any] = []
    machine.extend(made, machine.pop_mark())
    machine.push(made)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.put_items(machine.top(), (key, value))


def _set_items(machine: _Machine) -> None:
    values = machine.pop_mark()
    machine.put_items(machine.top(), values)


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.extend(machine.top(), [value])


def _appends(machine: _Machine) -> None:
    values = machine.pop_mark()
    machine.extend(machine.top(), values)


def _empty_set(machine: _Machine) -> None:
    machine.spend(216)
    machine.push(set())


def _add_items(machine: _Machine) -> None:
    values = machine.pop_mark()
    machine.add_items(machine.top(), values)


def _frozen_set(machine: _Machine) -> None:
    values = machine.pop_mark()
    machine.spend(216 + 80 * len(values))
    machine.push(frozenset(machine.key(value) for value in values))


def _short_tuple(count: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine.push_tuple([machine.pop() for _ in range(count)][::-1])

    return step


def _global_lines(machine: _Machine) -> None:
    module = machine.decode(machine.take_line(4096))
    machine.push_global(module, machine.decode(machine.take_line(4096)))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise machine.malformed("names a global with something that is not text")
    machine.push_global(module, name)


def _refuse_inst(machine: _Machine) -> None:
    module = machine.decode(machine.take_line(4096))
    name = machine.decode(machine.take_line(4096))
    raise machine.unsafe(f"an instance of {show_name(f'{module}.{name}')} (opcode INST)")


def _refuse_obj(machine: _Machine) -> None:
    values = machine.pop_mark()
    what = values[0].name if values and isinstance(values[0], Constructor) else "a class of its own"
    raise machine.unsafe(f"an instance of {what} (opcode OBJ)")


def _refuse(what: str, form: str = "") -> _Step:
    def step(machine: _Machine) -> None:
        number = f" {machine.number(form)}" if form else ""
        raise machine.unsafe(f"{what}{number}")

    return step


def _values(make: Callable[[_Machine], Any]) -> _Step:
    return lambda machine: machine.push(make(machine))


def _container(kind: Callable[[], Any], cost: int) -> _Step:
    def step(machine: _Machine) -> None:
        machine.spend(cost)
        machine.push(kind())

    return step


def _float(machine: _Machine) -> float:
    return float(struct.unpack(">d", machine.window.take(8))[0])


_STEPS: dict[int, _Step] = {
    _PROTO: _proto,
    0x95: _frame,
    # Stack
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): _pop_mark,
    ord("2"): lambda machine: machine.push(machine.top()),
    # Numbers and constants
    ord("N"): _values(lambda _: None),
    0x88: _values(lambda _: True),
    0x89: _values(lambda _: False),
    ord("I"): _int_line,
    ord("L"): _long_line,
    ord("F"): _float_line,
    ord("J"): _values(lambda machine: machine.number("<i")),
    ord("K"): _values(lambda machine: machine.number("<B")),
    ord("M"): _values(lambda machine: machine.number("<H")),
    0x8A: lambda machine: _long(machine, machine.number("<B")),
    0x8B: lambda machine: _long(machine, machine.number("<i")),
    ord("G"): _values(_float),
    # Text and bytes
    ord("S"): _quoted_line,
    ord("V"): _unicode_line,
    ord("T"): _values(lambda machine: machine.take_text(machine.number("<i"))),
    ord("U"): _values(lambda machine: machine.take_text(machine.number("<B"))),
    ord("X"): _values(lambda machine: machine.take_text(machine.number("<I"))),
    0x8C: _values(lambda machine: machine.take_text(machine.number("<B"))),
    0x8D: _values(lambda machine: machine.take_text(machine.number("<Q"))),
    ord("B"): _values(lambda machine: machine.take_bytes(machine.number("<I"))),
    ord("C"): _values(lambda machine: machine.take_bytes(machine.number("<B"))),
    0x8E: _values(lambda machine: machine.take_bytes(machine.number("<Q"))),
    0x96: _values(lambda machine: machine.take_bytes(machine.number("<Q"))),
    # Containers
    ord("}"): _container(dict, 64),
    ord("]"): _container(list, 56),
    ord(")"): _container(tuple, 0),
    0x8F: _empty_set,
    ord("d"): _dict_from_mark,
    ord("l"): _list_from_mark,
    ord("t"): lambda machine: machine.push_tuple(machine.pop_mark()),
    0x85: _short_tuple(1),
    0x86: _short_tuple(2),
    0x87: _short_tuple(3),
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord("a"): _append,
    ord("e"): _appends,
    0x90: _add_items,
    0x91: _frozen_set,
    # Memo
    ord("p"): lambda machine: machine.remember(_parse_number(machine, machine.take_line(20), int)),
    ord("q"): lambda machine: machine.remember(machine.number("<B")),
    ord("r"): lambda machine: machine.remember(machine.number("<I")),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("g"): lambda machine: machine.recall(_parse_number(machine, machine.take_line(20), int)),
    ord("h"): lambda machine: machine.recall(machine.number("<B")),
    ord("j"): lambda machine: machine.recall(machine.number("<I")),
    # Names, calls and persistent ids
    ord("c"): _global_lines,
    0x93: _stack_global,
    ord("R"): _Machine.call,
    0x81: _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.load_persistent,
    # Never needed by tensors
    ord("i"): _refuse_inst,
    ord("o"): _refuse_obj,
    0x92: _refuse("an object with keyword arguments (opcode NEWOBJ_EX)"),
    0x82: _refuse("copyreg extension code", "<B"),
    0x83: _refuse("copyreg extension code", "<H"),
    0x84: _refuse("copyreg extension code", "<i"),
    0x97: _refuse("a buffer from outside the file (opcode NEXT_BUFFER)"),
    0x98: _refuse("a buffer from outside the file (opcode READONLY_BUFFER)"),
    ord("P"): _refuse("a storage named by text (opcode PERSID)"),
}
