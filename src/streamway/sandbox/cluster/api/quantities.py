"""Kubernetes quantities: 500m, 2Gi, 1e3."""

import re
from decimal import Decimal
from typing import Any

_QUANTITY = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))([eE][+-]?\d+|[KMGTPE]i|[numkMGTPE]|)$")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def parse_quantity(value: Any) -> Decimal:
    """Read a quantity.

    Raises:
        ValueError: the text is no quantity.
    """
    match = _QUANTITY.match(str(value))
    if match is None:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number, suffix = Decimal(match.group(1)), match.group(2)
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    return number.scaleb(int(suffix[1:]))


def format_quantity(value: Decimal, like: str = "") -> str:
    """Write a quantity in the style of its resource.

    Args:
        value: The number.
        like: The resource; memory and storage are written in binary units, cpu in thousandths where needed.
    """
    if "memory" in like or "storage" in like:
        for suffix in ("Ti", "Gi", "Mi", "Ki"):
            if value and value % (1 << _BINARY[suffix]) == 0:
                return f"{value // (1 << _BINARY[suffix])}{suffix}"
    if value == value.to_integral_value():
        return str(int(value))
    return f"{int((value * 1000).to_integral_value())}m"
