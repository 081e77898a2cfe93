"""The few images that stand for a batch."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory import representative as module
from varprop.simulator.theory.representative import described, piece_of, representative, representative_pieces
from varprop.simulator.theory.start import start
from varprop.tests.tolerances import BEYOND, ROUNDING


def distances(data, choices):
    traits = described(data)
    return np.array([np.sum((traits[list(chosen)].mean(axis=0) - traits.mean(axis=0)) ** 2) for chosen in choices])


def test_the_best_of_all_choices_is_found():
    data = load_batch("photo", (3, 16, 16), 14, 0).data
    every = distances(data, combinations(range(14), 4))
    assert distances(data, [representative(data, 4)])[0] == pytest.approx(every.min(), rel=ROUNDING)


def test_closer_than_any_of_a_thousand_random_choices():
    data, rng = load_batch("photo", (3, 32, 32), 64, 0).data, np.random.default_rng(1)
    random = distances(data, [rng.permutation(64)[:6] for _ in range(1000)])
    assert distances(data, [representative(data, 6)])[0] < 0.9 * random.min()


def test_images_that_differ_in_one_half_are_chosen_from_both_kinds():
    """Halves of the batch are rough on the left and on the right, the same in all: their profile decides."""
    rng = np.random.default_rng(0)
    data = 0.1 * rng.standard_normal((20, 3, 8, 8))
    data[:10, :, :, :4] *= 10.0
    data[10:, :, :, 4:] *= 10.0
    chosen = representative(data, 4)
    assert np.sum(chosen < 10) == 2


def first_layer(pieces):
    """What random channels behind a 3 x 3 window make of each of some pieces: mean, size, and size with its sign."""
    windows = np.lib.stride_tricks.sliding_window_view(pieces, (3, 3), axis=(2, 3))
    z = np.einsum("ncxyij,fcij->fnxy", windows, np.random.default_rng(3).standard_normal((32, 3, 3, 3)), optimize=True)
    return np.stack([z, z**2, z * np.abs(z)]).mean(axis=(3, 4))


def test_chosen_pieces_show_channels_what_the_whole_batch_does():
    data, side, rng = load_batch("photo", (3, 32, 32), 64, 0).data, (12, 12), np.random.default_rng(1)
    data = data - data.mean(axis=(0, 2, 3), keepdims=True)
    wanted = first_layer(data)
    unit, wanted = np.sqrt(np.mean(wanted**2, axis=(1, 2))), wanted.mean(axis=2)

    def error(chosen, places):
        pieces = np.stack([piece_of(data[image], side, place) for image, place in zip(chosen, places, strict=True)])
        return np.sqrt(np.mean(((first_layer(pieces).mean(axis=2) - wanted) / unit[:, None]) ** 2, axis=1))

    random = np.mean([error(rng.permutation(64)[:12], rng.random((12, 2))) for _ in range(30)], axis=0)
    assert (error(*representative_pieces(data, 12, side)) < 0.5 * random).all()


def test_pieces_are_of_different_images():
    data = load_batch("photo", (3, 20, 24), 9, 0).data
    for keep in (5, 9):
        chosen, places = representative_pieces(data, keep, (8, 24))
        assert len(set(chosen.tolist())) == len(places) == keep
        assert ((places >= 0.0) & (places <= 1.0)).all()
        assert not places[:, 1].any()
    assert piece_of(np.arange(20).reshape(4, 5), (2, 3), np.array([1.0, 0.5])).tolist() == [[11, 12, 13], [16, 17, 18]]


def test_whole_images_are_their_only_pieces():
    chosen, places = representative_pieces(np.ones((3, 1, 4, 4)), 3, (4, 4))
    assert chosen.tolist() == [0, 1, 2]
    assert places.shape == (3, 2)


@pytest.mark.parametrize("shape", [(5, 3, 1, 1), (5, 1, 1, 7), (5, 3, 40, 9)])
def test_maps_of_any_size_are_described(shape):
    data = np.random.default_rng(2).standard_normal(shape)
    assert np.isfinite(described(data)).all()
    assert len(set(representative(data, 2).tolist())) == 2


def test_images_without_any_contrast_are_as_good_as_one_another():
    assert len(representative(np.ones((6, 3, 4, 4)), 3)) == 3


def test_no_choice_where_all_are_kept():
    assert representative(np.zeros((4, 3, 2, 2)), 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("size", "samples", "carried"), [(32, 15, 15), (32, 40, 10), (96, 15, 10)])
def test_small_batches_of_small_images_are_carried_whole(size, samples, carried):
    """Ten of 15 images left a fifth of MobileNetV2's gradient, all of them a twentieth."""
    network = build("mobilenet_v2", size=size)
    layout = start(load_batch("photo", network.nodes[0].shape, samples, 0), network).layout
    assert layout.profiles == carried


@pytest.mark.parametrize("batch", [6, 140])
def test_dense_layers_look_at_images_whole(batch):
    net = NetworkBuilder("dense", "torch", (3, 24, 24))
    net.flatten()
    net.linear(5, parse_initializer("he_normal"))
    network, data = net.build(), load_batch("photo", (3, 24, 24), batch, 0)
    found = predict(network, data).layers[-1].forward.second_moment
    assert found == pytest.approx(2.0 * float(np.mean(data.data**2)), rel=ROUNDING)


def test_every_image_has_a_cotangent_of_its_own():
    """Where ten images stand for 64 a normalisation took a tenth of a gradient that is one number in each image."""
    net = NetworkBuilder("standing", "torch", (3, 32, 32))
    net.conv2d(32, 3, parse_initializer("he_normal"), stride=2)
    net.batch_norm()
    net.global_average_pool()
    network, batch = net.build(), load_batch("photo", (3, 32, 32), 64, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=400, seed=0)).backward[1]
    assert found.z is not None
    assert abs(found.z) < BEYOND


def test_grids_average_what_lies_in_a_cell():
    field = np.arange(12.0).reshape(1, 2, 6)
    found = module._averaged(field, 3)
    assert found.tolist() == [[0.5, 2.5, 4.5, 6.5, 8.5, 10.5]]
