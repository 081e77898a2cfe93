"""The slow, obvious engine: float64 NumPy, samples first, one loop for every tap. The oracle of the fast one."""

from functools import singledispatch

import numpy as np

from varprop.simulator.activations import activation
from varprop.simulator.montecarlo.draws import COTANGENT, Draws, Parameters
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    ZeroPad,
)


def draw(network, seed, trial, batch):
    """The parameters of every node (None without) and the cotangent, samples first, as the fast engine draws them."""
    draws = Draws(seed, trial, 1, np.float64)

    def one(index, node):
        drawn = draws.parameters(index, node, network.framework)
        return Parameters(drawn.weight[0], None if drawn.bias is None else drawn.bias[0])

    parameters = [
        one(index, node) if isinstance(node.operation, Conv2d | Linear) else None
        for index, node in enumerate(network.nodes)
    ]
    cotangent = np.empty((*network.nodes[-1].shape, batch))
    draws.normals(len(network) - 1, COTANGENT, cotangent)
    return parameters, np.moveaxis(cotangent, -1, 0)


def run(network, data, parameters, cotangent):
    """Outputs of all nodes, and the gradients of sum(cotangent * last output) with respect to them."""
    outputs = []
    for node, drawn in zip(network.nodes, parameters, strict=True):
        sources = [outputs[index] for index in node.inputs]
        outputs.append(forward(node.operation, drawn, *sources) if sources else data)
    gradients = [np.zeros_like(output) for output in outputs]
    gradients[-1] = cotangent.copy()
    for index in reversed(range(1, len(network))):
        node = network.nodes[index]
        sources = [outputs[source] for source in node.inputs]
        for source, gradient in zip(
            node.inputs, backward(node.operation, parameters[index], gradients[index], *sources), strict=True
        ):
            gradients[source] += gradient
    return outputs, gradients


def moments(array):
    """(mean, second moment, batch normalisation's variance) of an array with samples first."""
    channels = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
    return array.mean(), (array**2).mean(), channels.var(axis=1).mean()


@singledispatch
def forward(operation, drawn, x):
    raise NotImplementedError


@singledispatch
def backward(operation, drawn, gradient, x):
    raise NotImplementedError


def _bias(drawn, ndim):
    return 0.0 if drawn.bias is None else drawn.bias.reshape(-1, *(1,) * (ndim - 2))


@forward.register
def _(operation: Linear, drawn, x):
    return np.einsum("oi,bi->bo", drawn.weight, x) + _bias(drawn, 2)


@backward.register
def _(operation: Linear, drawn, gradient, x):
    return [np.einsum("oi,bo->bi", drawn.weight, gradient)]


def _conv_taps(operation):
    """(output channel, input channel, index into the weights, the tap's rows and columns of the padded map)."""
    per_in = operation.in_channels // operation.groups
    per_out = operation.out_channels // operation.groups
    for o in range(operation.out_channels):
        for c in range(per_in):
            for i in range(operation.kernel[0]):
                for j in range(operation.kernel[1]):
                    yield o, o // per_out * per_in + c, (o, c, i, j), i, j


def _pad(x, padding):
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


def _crop(x, padding):
    top, bottom, left, right = padding
    return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def _tap(i, j, stride, rows, columns):
    return slice(i, i + stride[0] * (rows - 1) + 1, stride[0]), slice(j, j + stride[1] * (columns - 1) + 1, stride[1])


def _size(operation, padded):
    return tuple((padded.shape[2 + k] - operation.kernel[k]) // operation.stride[k] + 1 for k in (0, 1))


@forward.register
def _(operation: Conv2d, drawn, x):
    padded = _pad(x, operation.padding)
    rows, columns = _size(operation, padded)
    y = np.zeros((len(x), operation.out_channels, rows, columns))
    for o, c, place, i, j in _conv_taps(operation):
        y[:, o] += drawn.weight[place] * padded[:, c, *_tap(i, j, operation.stride, rows, columns)]
    return y + _bias(drawn, 4)


@backward.register
def _(operation: Conv2d, drawn, gradient, x):
    padded = np.zeros_like(_pad(x, operation.padding))
    for o, c, place, i, j in _conv_taps(operation):
        padded[:, c, *_tap(i, j, operation.stride, *gradient.shape[2:])] += drawn.weight[place] * gradient[:, o]
    return [_crop(padded, operation.padding)]


@forward.register
def _(operation: BatchNorm, drawn, x):
    axes = (0, *range(2, x.ndim))
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + operation.eps)


@backward.register
def _(operation: BatchNorm, drawn, gradient, x):
    # Ioffe and Szegedy 2015, the unnumbered chain-rule equations of section 3.
    axes = (0, *range(2, x.ndim))
    n = x.size // x.shape[1]
    centred = x - x.mean(axes, keepdims=True)
    variance = x.var(axes, keepdims=True) + operation.eps
    d_variance = (gradient * centred).sum(axes, keepdims=True) * -0.5 * variance**-1.5
    d_mean = (-gradient / np.sqrt(variance)).sum(axes, keepdims=True)
    return [gradient / np.sqrt(variance) + d_variance * 2 * centred / n + d_mean / n]


@forward.register
def _(operation: Activation, drawn, x):
    return activation(operation.function).value(x)


@backward.register
def _(operation: Activation, drawn, gradient, x):
    return [gradient * activation(operation.function).derivative(x)]


@forward.register
def _(operation: Add, drawn, *sources):
    return sum(sources)


@backward.register
def _(operation: Add, drawn, gradient, *sources):
    return [gradient] * len(sources)


def _windows(operation, x):
    """(row, column, the window's rows and columns) for every output position."""
    rows, columns = _size(operation, x)
    for row in range(rows):
        for column in range(columns):
            top, left = row * operation.stride[0], column * operation.stride[1]
            window = slice(top, top + operation.kernel[0]), slice(left, left + operation.kernel[1])
            yield row, column, window


@forward.register
def _(operation: AveragePool, drawn, x):
    y = np.zeros((*x.shape[:2], *_size(operation, x)))
    for row, column, window in _windows(operation, x):
        y[:, :, row, column] = x[:, :, *window].mean(axis=(2, 3))
    return y


@backward.register
def _(operation: AveragePool, drawn, gradient, x):
    out = np.zeros_like(x)
    for row, column, window in _windows(operation, x):
        out[:, :, *window] += gradient[:, :, row, column, None, None] / np.prod(operation.kernel)
    return [out]


@forward.register
def _(operation: MaxPool, drawn, x):
    y = np.zeros((*x.shape[:2], *_size(operation, x)))
    for row, column, window in _windows(operation, x):
        y[:, :, row, column] = x[:, :, *window].max(axis=(2, 3))
    return y


@backward.register
def _(operation: MaxPool, drawn, gradient, x):
    out = np.zeros_like(x)
    for row, column, window in _windows(operation, x):
        for sample in range(x.shape[0]):
            for channel in range(x.shape[1]):
                values = x[sample, channel, *window]
                i, j = np.unravel_index(np.argmax(values), values.shape)  # the first of equal ones
                out[sample, channel, window[0].start + i, window[1].start + j] += gradient[sample, channel, row, column]
    return [out]


@forward.register
def _(operation: GlobalAveragePool, drawn, x):
    return x.mean(axis=(2, 3))


@backward.register
def _(operation: GlobalAveragePool, drawn, gradient, x):
    return [np.broadcast_to(gradient[:, :, None, None] / (x.shape[2] * x.shape[3]), x.shape)]


@forward.register
def _(operation: Flatten, drawn, x):
    return x.reshape(len(x), -1)


@backward.register
def _(operation: Flatten, drawn, gradient, x):
    return [gradient.reshape(x.shape)]


@forward.register
def _(operation: ZeroPad, drawn, x):
    return _pad(x, operation.padding)


@backward.register
def _(operation: ZeroPad, drawn, gradient, x):
    return [_crop(gradient, operation.padding)]
