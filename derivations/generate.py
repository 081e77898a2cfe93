"""Write the simulator's formulas: ``python -m varprop.derivations.generate``.

The formula that a derivation proves and prints is the formula that runs; the simulator itself never imports SymPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import sympy as sp

from varprop.derivations import derivation
from varprop.derivations.printing.code import Line, array_body, numeric, scalar_body
from varprop.derivations.special_functions import elementary
from varprop.derivations.theorem import Derivation, Result

FOLDER = Path(__file__).parents[1] / "simulator" / "generated"

ACTIVATIONS = {
    "linear": "identity",
    "relu": "relu",
    "leaky_relu": "leaky_relu",
    "relu6": "relu6",
    "elu": "elu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "erf": "erf",
    "gelu": "gelu",
    "silu": "silu",
    "hard_swish": "hard_swish",
}
"""Family in the simulator, and topic."""

LAYERS = ("linear", "bias", "batch_norm", "add", "average_pool", "truncated_normal")

_FUNCTIONS = ("value", "derivative")
_MOMENTS = ("mean", "second_moment", "derivative_second_moment", "dual", "derivative_dual")

_NOTE = "Written by `python -m varprop.derivations.generate`; do not edit."


def sources() -> dict[str, str]:
    """Return the text of every generated file by name."""
    families = {family: derivation(topic) for family, topic in ACTIVATIONS.items()}
    return {
        "activations.py": _module(
            f'"""Activations and their derivatives on floats, in terms of `math` alone.\n\n{_NOTE}\n"""',
            "import math",
            *_functions(families, _FUNCTIONS, scalar_body, "float", "float"),
        ),
        "arrays.py": _module(
            f'"""Activations and their derivatives on arrays.\n\n{_NOTE}\n"""',
            _ARRAY_IMPORTS,
            *_functions(families, _FUNCTIONS, array_body, "Array", "Any"),
            _table(families, _FUNCTIONS),
        ),
        "moments.py": _module(
            f'"""Closed forms of the activations\' Gaussian moments.\n\n{_NOTE}\n"""',
            _ARRAY_IMPORTS + "\n\nfrom varprop.simulator.special import erfcx_tail",
            *_functions(families, _MOMENTS, array_body, "Array", "Any"),
            _table(families, _MOMENTS),
            _closed_forms(families),
        ),
        "layers.py": _module(
            f'"""Layer recurrences on floats or arrays.\n\n{_NOTE}\n"""',
            "from typing import Any, TypeAlias\n\nimport numpy as np\nimport scipy\n\n"
            'Quantity: TypeAlias = Any\n"""A float or an array, combined by NumPy\'s rules."""',
            *(
                _function(f"{topic}_{name}", result, derivation(topic), array_body, "Quantity", "Quantity")
                for topic in LAYERS
                for name, result in derivation(topic).results.items()
            ),
        ),
    }


def main() -> None:
    """Write the files."""
    for name, text in sources().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


_ARRAY_IMPORTS = """from collections.abc import Callable
from typing import Any

# SciPy imports its rooms when they are first asked for: not every formula needs the slow one of special functions.
import numpy as np
import scipy
from numpy.typing import NDArray"""


def _module(docstring: str, imports: str, *blocks: str) -> str:
    alias = "\n\nArray = NDArray[np.float64]" if "NDArray" in imports else ""
    return "\n\n\n".join([f"{docstring}\n\n# fmt: off\n{imports}{alias}", *blocks]) + "\n"


def _functions(
    families: dict[str, Derivation],
    names: tuple[str, ...],
    body: Callable[[sp.Expr], Iterator[Line]],
    array: str,
    returned: str,
) -> Iterator[str]:
    for family, theorem in families.items():
        for name in names:
            if name in theorem.results:
                yield _function(f"{family}_{name}", theorem.results[name], theorem, body, array, returned)


def _function(
    name: str,
    result: Result,
    theorem: Derivation,
    body: Callable[[sp.Expr], Iterator[Line]],
    array: str,
    returned: str,
) -> str:
    arguments = ", ".join(f"{symbol}: {'float' if symbol.name == 'a' else array}" for symbol in result.arguments)
    lines = "\n".join("    " * (depth + 1) + line for depth, line in body(numeric(result, theorem)))
    return f'def {name}({arguments}) -> {returned}:\n    """Return {result.meaning}."""\n{lines}'


def _table(families: dict[str, Derivation], names: tuple[str, ...]) -> str:
    rows = []
    for name in names:
        entries = "".join(
            f'        "{family}": {family}_{name},\n' for family, theorem in families.items() if name in theorem.results
        )
        rows.append(f'    "{name}": {{\n{entries}    }},\n')
    return f"TABLE: dict[str, dict[str, Callable[..., Any]]] = {{\n{''.join(rows)}}}"


def _closed_forms(families: dict[str, Derivation]) -> str:
    rows = []
    for family, theorem in families.items():
        entries = "".join(
            f'        "{name}": {_wrapped(_readable(theorem.results[name], theorem))},\n'
            for name in _MOMENTS[:3]
            if name in theorem.results
        )
        rows.append(f'    "{family}": {{\n{entries}    }},\n')
    return f"CLOSED_FORMS: dict[str, dict[str, str]] = {{\n{''.join(rows)}}}"


def _readable(result: Result, theorem: Derivation) -> sp.Expr:
    constants = {symbol: value.evalf(17) for symbol, value in theorem.constants.items()}
    return elementary(sp.sympify(result.expression)).subs(constants)


def _wrapped(expression: sp.Expr) -> str:
    text, width = str(expression), 80
    pieces = [text[i : i + width] for i in range(0, len(text), width)]
    if len(pieces) == 1:
        return f'"{text}"'
    return "(\n" + "".join(f'            "{piece}"\n' for piece in pieces) + "        )"


if __name__ == "__main__":
    main()
