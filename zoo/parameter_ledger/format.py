"""Numbers, shapes, formulas and totals of a ledger as short texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.parameter_ledger.formulas import Formula
    from zoo.parameter_ledger.ledger import Ledger, LedgerRow


def format_count(number: float | None) -> str:
    """A number in full, or from a million on with three digits.

    Args:
        number: a count, or None.

    Returns:
        e.g. "12,345", "227 M", "1.36 G"; "?" for None.
    """
    return _scaled(number, ((1e12, "T"), (1e9, "G"), (1e6, "M")), "")


def format_bytes(number: float | None) -> str:
    """Bytes in decimal units.

    Args:
        number: of bytes, or None.

    Returns:
        e.g. "295 kB", "38.1 MB"; "?" for None.
    """
    return _scaled(number, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")), " B")


def _scaled(number, units, suffix):
    if number is None:
        return "?"
    for factor, unit in units:
        if number >= factor:
            scaled = number / factor
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"
    return f"{number:,}{suffix}"


def format_shape(shape: Sequence[int | None]) -> str:
    """A shape as a product.

    Args:
        shape: sizes; None for those that stay open.

    Returns:
        e.g. "48·48·3"; open sizes are "?".
    """
    return "·".join("?" if size is None else str(size) for size in shape) or "one number"


def format_outputs(row: LedgerRow) -> str:
    """The output shapes of a row.

    Args:
        row: of a ledger.

    Returns:
        e.g. "48·48·32".
    """
    return ", ".join(format_shape(shape) for shape in row.outputs)


def format_formula(formula: Formula) -> str:
    """A formula in full.

    Args:
        formula: of a row.

    Returns:
        e.g. "query: (d_q_in + 1)·n·d_k = (64 + 1)·4·16 = 4,160".
    """
    symbolic, substituted = formula.symbolic, formula.substituted
    terms = symbolic if symbolic == substituted else f"{symbolic} = {substituted}"
    value = "?" if formula.value is None else f"{formula.value:,}"
    part = f"{formula.part}: " if formula.part else ""
    return f"{part}{terms} = {value}" if terms != value else f"{part}{value}"


def format_macs(ledger: Ledger) -> str:
    """The multiply-accumulates of an example.

    Args:
        ledger: of a model.

    Returns:
        e.g. "96.4 M"; "≥ 96.4 M" where some rows are unknown, "?" where nothing is known.
    """
    if not ledger.unknown_layers:
        return format_count(ledger.macs)
    return f"≥ {format_count(ledger.macs)}" if ledger.macs else "?"


def format_memory(ledger: Ledger) -> str:
    """The memory of training in one line; parts that cannot be computed are left out.

    Args:
        ledger: of a model.

    Returns:
        the line.
    """
    parts = ledger.training_memory()
    total = parts.pop("total")
    items = ", ".join(
        f"{name} {format_bytes(value)}" for name, value in parts.items() if value or not ledger.unknown_layers
    )
    return (
        f"Training with Adam at batch {ledger.batch_size} takes {'at least' if ledger.unknown_layers else 'about'} "
        f"{format_bytes(total)}: {items}."
    )
