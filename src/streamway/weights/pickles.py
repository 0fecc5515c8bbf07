"""Reading pickles without running them: the opcodes, each as what it does to a machine that only builds plain data.

The opcodes are those of protocols 0 to 5, as documented in CPython's `Lib/pickletools.py`. Those that make objects at
will (INST, OBJ, NEWOBJ_EX, extension codes, buffers from outside) are known by name and refused.
"""

import codecs
import struct
from collections.abc import Callable
from typing import Any

from streamway.weights.pickle_machine import MEMORY_BUDGET_BYTES, Constructor, Machine, Vocabulary
from streamway.weights.windows import ByteWindow
from streamway.weights.wording import show_name

_STEP_COST = 32
_NUMBER_LINE_LIMIT = 400
_LONG_LIMIT = 1024


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
    machine = Machine(window, vocabulary, subject, budget_bytes)
    first = window.offset
    while True:
        at = window.offset
        opcode = window.take(1)[0]
        machine.spend(_STEP_COST)
        if opcode == _STOP:
            return machine.finish()
        if opcode == _PROTO and at != first:
            raise machine.malformed("declares its protocol in the middle")
        step = _STEPS.get(opcode)
        if step is None:
            raise machine.malformed(f"has the unknown opcode 0x{opcode:02x} at offset {at:,}")
        step(machine)


_Step = Callable[[Machine], None]
_STOP, _PROTO = ord("."), 0x80


def _proto(machine: Machine) -> None:
    version = machine.window.take(1)[0]
    if version > 5:
        raise machine.malformed(f"has protocol {version}, expected 0 to 5")


def _frame(machine: Machine) -> None:
    length = machine.number("<Q")
    if length > machine.window.remaining:
        raise machine.malformed(f"announces a frame of {length:,} bytes where {machine.window.remaining:,} are left")


def _mark(machine: Machine) -> None:
    machine.spend(56)
    machine.outer.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack or not machine.outer:
        machine.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: Machine) -> None:
    machine.pop_mark()


def _int_line(machine: Machine) -> None:
    text = machine.take_line(_NUMBER_LINE_LIMIT)
    if text in (b"00", b"01"):
        machine.push(text == b"01")
    else:
        machine.push(_parse_number(machine, text, int))


def _long_line(machine: Machine) -> None:
    machine.push(_parse_number(machine, machine.take_line(_NUMBER_LINE_LIMIT).removesuffix(b"L"), int))


def _float_line(machine: Machine) -> None:
    machine.push(_parse_number(machine, machine.take_line(_NUMBER_LINE_LIMIT), float))


def _parse_number(machine: Machine, text: bytes, kind: Callable[[bytes], Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise machine.malformed(f"has {show_name(repr(text), 40)} where a number should be") from error


def _long(machine: Machine, length: int) -> None:
    if length < 0 or length > _LONG_LIMIT:
        raise machine.malformed(f"has an integer of {length:,} bytes, expected at most {_LONG_LIMIT:,}")
    machine.push(int.from_bytes(machine.take_bytes(length), "little", signed=True))


def _quoted_line(machine: Machine) -> None:
    text = machine.take_line()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise machine.malformed("has a string without quotes")
    try:
        raw, _ = codecs.escape_decode(text[1:-1])
    except ValueError as error:
        raise machine.malformed("has a string with a broken escape") from error
    machine.push(machine.decode(raw))


def _unicode_line(machine: Machine) -> None:
    text = machine.take_line()
    try:
        machine.push(str(text, "raw-unicode-escape"))
    except UnicodeDecodeError as error:
        raise machine.malformed("has a string with a broken escape") from error


def _dict_from_mark(machine: Machine) -> None:
    made: dict[Any, Any] = {}
    machine.put_items(made, machine.pop_mark())
    machine.push(made)


def _list_from_mark(machine: Machine) -> None:
    made: list[Any] = []
    machine.extend(made, machine.pop_mark())
    machine.push(made)


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.put_items(machine.top(), (key, value))


def _set_items(machine: Machine) -> None:
    values = machine.pop_mark()
    machine.put_items(machine.top(), values)


def _append(machine: Machine) -> None:
    value = machine.pop()
    machine.extend(machine.top(), [value])


def _appends(machine: Machine) -> None:
    values = machine.pop_mark()
    machine.extend(machine.top(), values)


def _empty_set(machine: Machine) -> None:
    machine.spend(216)
    machine.push(set())


def _add_items(machine: Machine) -> None:
    values = machine.pop_mark()
    machine.add_items(machine.top(), values)


def _frozen_set(machine: Machine) -> None:
    values = machine.pop_mark()
    machine.spend(216 + 80 * len(values))
    machine.push(frozenset(machine.key(value) for value in values))


def _short_tuple(count: int) -> _Step:
    def step(machine: Machine) -> None:
        machine.push_tuple([machine.pop() for _ in range(count)][::-1])

    return step


def _global_lines(machine: Machine) -> None:
    module = machine.decode(machine.take_line(4096))
    machine.push_global(module, machine.decode(machine.take_line(4096)))


def _stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise machine.malformed("names a global with something that is not text")
    machine.push_global(module, name)


def _refuse_inst(machine: Machine) -> None:
    module = machine.decode(machine.take_line(4096))
    name = machine.decode(machine.take_line(4096))
    raise machine.unsafe(f"an instance of {show_name(f'{module}.{name}')} (opcode INST)")


def _refuse_obj(machine: Machine) -> None:
    values = machine.pop_mark()
    what = values[0].name if values and isinstance(values[0], Constructor) else "a class of its own"
    raise machine.unsafe(f"an instance of {what} (opcode OBJ)")


def _refuse(what: str, form: str = "") -> _Step:
    def step(machine: Machine) -> None:
        number = f" {machine.number(form)}" if form else ""
        raise machine.unsafe(f"{what}{number}")

    return step


def _values(make: Callable[[Machine], Any]) -> _Step:
    return lambda machine: machine.push(make(machine))


def _container(kind: Callable[[], Any], cost: int) -> _Step:
    def step(machine: Machine) -> None:
        machine.spend(cost)
        machine.push(kind())

    return step


def _float(machine: Machine) -> float:
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
    ord("R"): Machine.call,
    0x81: Machine.call,
    ord("b"): Machine.build,
    ord("Q"): Machine.load_persistent,
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
