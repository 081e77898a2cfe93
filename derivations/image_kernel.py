"""A small image under one kernel, written out: every output, every kernel gradient, every input gradient."""

from __future__ import annotations

import re

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, Step, step

Size = tuple[int, int]
"""Height and width."""

LARGEST = 4096
"""Products of a weight and a pixel that are written out."""

_rows, _columns, _height, _width = sp.symbols("R S A B", integer=True, positive=True)
_i, _j, _a, _b, _s, _t = sp.symbols("i j a b s t", integer=True)
_sigma2, _q, _g = sp.symbols("sigma2 q g", positive=True)
_mean = sp.Symbol("mean", real=True)
_x, _k, _delta, _w, _h, _random_delta = (sp.IndexedBase(name) for name in ("x", "k", "delta", "w", "h", "d"))
_SIZES = tuple(
    {_rows: rows, _columns: columns, _height: height, _width: width, _a: a, _b: b}
    for rows, columns, height, width, a, b in ((1, 1, 2, 2, 1, 2), (2, 2, 2, 2, 2, 1), (2, 3, 1, 2, 1, 1))
)

ASSUMPTIONS = (
    "one channel in, one channel out, stride 1, no padding, no bias; further channels add terms of the same form",
    "$k$ is not flipped, as in every deep learning framework: a cross-correlation; indices start at 1",
    r"$L$ is any loss of the outputs, and $\delta$ its gradient with respect to them",
    r"second moments: independent weights of mean 0 and variance $\sigma^2$; $\delta$ independent of them and of"
    " the image, with mean 0 and uncorrelated positions",
)


def sized(sizes: str) -> Derivation:
    """Return the derivation for sizes as text, image then kernel, each height x width: ``3x3,2x2``.

    Raises
    ------
    ValueError
        If the text is not two sizes, the kernel does not fit, or there are more than `LARGEST` products.
    """
    match = re.fullmatch(r"\s*(\d{1,3})x(\d{1,3})\s*,\s*(\d{1,3})x(\d{1,3})\s*", sizes)
    if match is None:
        raise ValueError("two sizes, image and kernel, as in image_kernel(3x3,2x2)")
    height, width, rows, columns = (int(number) for number in match.groups())
    if not (0 < rows <= height and 0 < columns <= width):
        raise ValueError("a kernel of at least 1x1 that fits into the image")
    if (height - rows + 1) * (width - columns + 1) * rows * columns > LARGEST:
        raise ValueError(f"at most {LARGEST} products of a weight and a pixel to write out")
    return explicit((height, width), (rows, columns))


def explicit(image: Size, kernel: Size) -> Derivation:
    """Return the derivation for an image and a kernel of these sizes."""
    outputs = (image[0] - kernel[0] + 1, image[1] - kernel[1] + 1)
    taps, positions = kernel[0] * kernel[1], outputs[0] * outputs[1]
    default = image == (3, 3) and kernel == (2, 2)
    return Derivation(
        "image_kernel" if default else f"image_kernel({image[0]}x{image[1]},{kernel[0]}x{kernel[1]})",
        f"Image and kernel written out ({image[0]} x {image[1]}, {kernel[0]} x {kernel[1]})",
        ASSUMPTIONS,
        (
            *_GENERAL,
            *(_output(i, j, kernel) for i, j in _places(outputs)),
            *(_kernel_gradient(a, b, outputs, kernel) for a, b in _places(kernel)),
            *(_input_gradient(i, j, outputs, kernel) for i, j in _places(image)),
        ),
        {
            "second_moment": Result((_sigma2, _q), taps * _sigma2 * _q, "second moment of the output"),
            "gradient": Result(
                (_sigma2, _g),
                sp.Rational(positions * taps, image[0] * image[1]) * _sigma2 * _g,
                "second moment of the input's gradient, averaged over the image",
            ),
            "kernel_gradient": Result((_q, _g), positions * _q * _g, "second moment of a weight's gradient"),
        },
        (cite("lecun1998", "section 4.6 (variance of a sum)"), cite("goodfellow2016", "Eqs. (9.6), (9.11) and (9.13)")),
        laws={
            _w: (sp.Integer(0), _sigma2),
            _h: (_mean, _q),
            _random_delta: (sp.Integer(0), _g),
        },
    )


def _places(size: Size) -> list[Size]:
    return [(i, j) for i in range(1, size[0] + 1) for j in range(1, size[1] + 1)]


def _sum(term: sp.Expr, first: sp.Expr, second: sp.Expr, indices: tuple[sp.Symbol, sp.Symbol]) -> sp.Sum:
    return sp.Sum(term, (indices[0], 1, first), (indices[1], 1, second))


def _loss(rows: sp.Expr, columns: sp.Expr, height: sp.Expr, width: sp.Expr) -> sp.Sum:
    """Return sum delta y: its derivatives are the loss's by the chain rule."""
    inner = _sum(_k[_s, _t] * _x[_i + _s - 1, _j + _t - 1], height, width, (_s, _t))
    return _sum(_delta[_i, _j] * inner, rows, columns, (_i, _j))


def _output(i: int, j: int, kernel: Size) -> Step:
    return step(
        f"output_{i}_{j}",
        f"Output in row {i}, column {j}.",
        "the window's pixels times the kernel's weights",
        _sum(_k[_a, _b] * _x[i + _a - 1, j + _b - 1], sp.Integer(kernel[0]), sp.Integer(kernel[1]), (_a, _b)),
        sp.Add(*(_k[a, b] * _x[i + a - 1, j + b - 1] for a, b in _places(kernel))),
    )


def _kernel_gradient(a: int, b: int, outputs: Size, kernel: Size) -> Step:
    return step(
        f"kernel_gradient_{a}_{b}",
        f"Gradient of the weight in row {a}, column {b}.",
        "chain rule: this weight meets one pixel in every output",
        sp.Derivative(_loss(*map(sp.Integer, outputs + kernel)), _k[a, b]),
        sp.Add(*(_delta[i, j] * _x[i + a - 1, j + b - 1] for i, j in _places(outputs))),
    )


def _input_gradient(p: int, r: int, outputs: Size, kernel: Size) -> Step:
    return step(
        f"input_gradient_{p}_{r}",
        f"Gradient of the pixel in row {p}, column {r}.",
        "chain rule: this pixel meets one weight in every window that holds it",
        sp.Derivative(_loss(*map(sp.Integer, outputs + kernel)), _x[p, r]),
        sp.Add(
            *(
                _delta[p - a + 1, r - b + 1] * _k[a, b]
                for a, b in _places(kernel)
                if 1 <= p - a + 1 <= outputs[0] and 1 <= r - b + 1 <= outputs[1]
            )
        ),
    )


_GENERAL = (
    step(
        "any_kernel_gradient",
        r"For any sizes: the kernel's gradient is the image convolved with the outputs' gradient ($R \times S$ outputs,"
        r" $A \times B$ weights).",
        r"differentiate the sum of $\delta y$: the weight $(a, b)$ meets pixel $(i + a - 1, j + b - 1)$ in output"
        " $(i, j)$",
        sp.Derivative(_loss(_rows, _columns, _height, _width), _k[_a, _b]),
        _sum(_delta[_i, _j] * _x[_i + _a - 1, _j + _b - 1], _rows, _columns, (_i, _j)),
        cases=_SIZES,
    ),
    step(
        "forward",
        "Forward: for random weights, the second moment is multiplied by the number of weights times their variance.",
        "products of different weights have mean 0",
        E(_sum(_w[_a, _b] * _h[_a, _b], _height, _width, (_a, _b)) ** 2),
        _height * _width * _sigma2 * _q,
        cases=_SIZES,
    ),
    step(
        "backward",
        "Backward: the same factor for a pixel that every tap of the kernel meets; border pixels meet fewer.",
        "products of different weights have mean 0",
        E(_sum(_w[_a, _b] * _random_delta[_a, _b], _height, _width, (_a, _b)) ** 2),
        _height * _width * _sigma2 * _g,
        cases=_SIZES,
    ),
    step(
        "kernel_second_moment",
        "Second moment of a weight's gradient: one term for each output.",
        "products of different output gradients have mean 0",
        E(_sum(_random_delta[_i, _j] * _h[_i, _j], _rows, _columns, (_i, _j)) ** 2),
        _rows * _columns * _q * _g,
        cases=_SIZES,
    ),
)

DERIVATION = explicit((3, 3), (2, 2))
