"""Batches: Gaussian noise, crops of a photograph, and CIFAR-10 read from files in its binary format."""

import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from varprop.simulator.errors import UserError
from varprop.simulator.images import resize
from varprop.simulator.inputs import NAMES, load_batch

RECORD = 3073
RECORDS = 10_000
SHAPE = (3, 32, 32)


def record_numbers(batch):
    """Read back the numbers that `cifar` wrote into the first two pixels of every image."""
    pixels = np.rint(batch.data[:, 0, 0, :2] * 255).astype(int)
    return pixels[:, 0] * 256 + pixels[:, 1]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder in the data set's format: image n holds n in its first two red pixels, its file in the third."""
    parent = tmp_path_factory.mktemp("data")
    folder = parent / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        # Numbers restart in every file, so that 16 bits hold them.
        records = np.memmap(folder / f"data_batch_{number}.bin", np.uint8, "w+", shape=(RECORDS, RECORD))
        records[:, 0] = np.arange(RECORDS) % 10
        records[:, 1], records[:, 2] = np.divmod(np.arange(RECORDS), 256)
        records[:, 3] = number
        records[:, 1 + 1024] = 100
        records[:, 1 + 2048 + 33] = 255
        records.flush()
    yield parent
    shutil.rmtree(folder)  # 150 MB


def test_gaussian_is_standard_normal_and_keyed_by_the_seed():
    batch = load_batch("gaussian", (3, 20, 20), 200, 1)
    assert (batch.data.shape, batch.data.dtype) == ((200, 3, 20, 20), np.float64)
    assert (batch.source, batch.exchangeable) == ("gaussian", True)
    n = batch.data.size
    assert abs(batch.data.mean()) < 4.5 / math.sqrt(n)
    assert abs(np.mean(batch.data**2) - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(np.mean(batch.data**4) - 3) < 4.5 * math.sqrt(96 / n)
    assert (load_batch("gaussian", (3, 20, 20), 200, 1).data == batch.data).all()
    assert not (load_batch("gaussian", (3, 20, 20), 200, 2).data == batch.data).any()
    assert load_batch("gaussian", (7,), 5, 0).data.shape == (5, 7)


def test_gaussian_does_not_share_the_stream_that_the_seed_itself_keys():
    batch = load_batch("gaussian", (64,), 1, 3).data
    for key in (3, np.random.SeedSequence(3)):
        stream = np.random.Philox(key=key) if isinstance(key, int) else np.random.Philox(key)
        assert not (np.random.Generator(stream).standard_normal((1, 64)) == batch).any()


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 24, 40), (3, 7, 5), (3, 600, 600), (3, 1, 1)])
def test_photo_crops_are_images(shape):
    batch = load_batch("photo", shape, 4, 0)
    assert batch.data.shape == (4, *shape)
    assert not batch.exchangeable
    assert batch.data.min() >= 0
    assert batch.data.max() <= 1
    assert (load_batch("photo", shape, 4, 0).data == batch.data).all()


def test_photo_crops_look_natural():
    images = load_batch("photo", SHAPE, 64, 0).data
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64
    pixels = images - images.mean()
    neighbours = np.mean(pixels[..., 1:] * pixels[..., :-1]) / np.mean(pixels**2)
    distant = np.mean(pixels[..., 16:] * pixels[..., :-16]) / np.mean(pixels**2)
    # Natural images: neighbouring pixels nearly equal, correlation falling with distance, contrast not lost.
    assert neighbours > 0.8
    assert distant < neighbours - 0.2
    assert 0.1 < pixels.std() < 0.4


def test_cifar_records_are_read_as_the_format_says(cifar):
    batch = load_batch("cifar10", SHAPE, 50, 0, cifar)
    assert batch.data.shape == (50, *SHAPE)
    assert not batch.exchangeable
    np.testing.assert_array_equal(batch.data[:, 1, 0, 0], 100 / 255)
    np.testing.assert_array_equal(batch.data[:, 2, 1, 1], 1)
    files = np.rint(batch.data[:, 0, 0, 2] * 255)
    assert set(files) == {1, 2, 3, 4, 5}
    images = set(zip(files, record_numbers(batch), strict=True))
    assert len(images) == 50
    assert max(record_numbers(batch)) > 5000


def test_cifar_picks_depend_on_the_seed_alone(cifar):
    few = load_batch("cifar10", SHAPE, 5, 7, cifar)
    many = load_batch("cifar10", SHAPE, 40, 7, cifar / "cifar-10-batches-bin")
    np.testing.assert_array_equal(many.data[:5], few.data)
    larger = load_batch("cifar10", (3, 64, 48), 5, 7, cifar)
    np.testing.assert_array_equal(larger.data, resize(few.data, 64, 48))
    other = load_batch("cifar10", SHAPE, 5, 8, cifar)
    assert (record_numbers(other) != record_numbers(few)).any()


def test_a_folder_of_other_things_is_not_to_be_removed(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"CIFAR-10's binary version\. Get it with varprop data"):
        load_batch("cifar10", SHAPE, 2, 0, tmp_path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "data_batch_3.bin: got no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-RECORD]), "data_batch_3.bin: got 30,726,927 bytes"),
        (lambda path: path.write_bytes(b""), "data_batch_3.bin: got 0 bytes, expected 30,730,000 bytes"),
        (lambda path: path.write_bytes(b"\xff" * RECORD * RECORDS), "data_batch_3.bin: got labels above 9"),
    ],
)
def test_damaged_files_are_refused_by_name(cifar, tmp_path, damage, told):
    for source in (cifar / "cifar-10-batches-bin").iterdir():
        if source.name != "data_batch_3.bin":
            (tmp_path / source.name).symlink_to(source)
    damaged = tmp_path / "data_batch_3.bin"
    damaged.write_bytes(bytes(RECORD * RECORDS))
    load_batch("cifar10", SHAPE, 2, 0, tmp_path)
    damage(damaged)
    with pytest.raises(UserError, match=told):
        load_batch("cifar10", SHAPE, 2, 0, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("noise", (4,), 2, 0), "--input: got 'noise', expected one of gaussian, photo, cifar10"),
        (("photos", (4,), 2, 0), "Did you mean 'photo'"),
        (("gaussian", (4,), 0, 0), "--batch: got 0"),
        (("gaussian", (4,), 10**10, 0), "--batch: got 10000000000"),
        (("gaussian", (4,), 2, -1), "--seed: got -1"),
        (("photo", (784,), 2, 0), r"--input: got photo, expected .*images.*, not \(784,\). Use gaussian"),
        (("cifar10", (1, 32, 32), 2, 0), r"--input: got cifar10.*\(3, height, width\)"),
        (("cifar10", SHAPE, 2, 0), "--data-dir: got nothing, expected the folder that holds cifar-10-batches-bin"),
    ],
)
def test_what_is_refused(arguments, told):
    with pytest.raises(UserError, match=told):
        load_batch(*arguments)


def test_missing_folder_and_too_many_images_are_refused(cifar, tmp_path):
    with pytest.raises(UserError, match=r"--data-dir: got .*nowhere"):
        load_batch("cifar10", SHAPE, 2, 0, tmp_path / "nowhere")
    with pytest.raises(UserError, match="--batch: got 50001, expected at most CIFAR-10's 50,000"):
        load_batch("cifar10", SHAPE, 50_001, 0, cifar)


def test_names():
    assert list(NAMES) == ["gaussian", "photo", "cifar10"]


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (224, 32), (16, 16), (5, 40), (1, 1)])
def test_resize_is_torch_bilinear_interpolation(size):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).random((2, 3, 32, 32))

    def interpolate(antialias):
        reference = torch.nn.functional.interpolate(
            torch.from_numpy(images), size=size, mode="bilinear", align_corners=False, antialias=antialias
        )
        return reference.numpy()

    np.testing.assert_allclose(resize(images, *size), interpolate(True), rtol=0, atol=1e-14)
    if min(size) >= 32:
        np.testing.assert_allclose(resize(images, *size), interpolate(False), rtol=0, atol=1e-14)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.floats(-5, 5))
def test_resize_keeps_constants_and_means_of_whole_ratios(rows, height, width, value):
    image = np.full((1, rows, 7), value)
    np.testing.assert_allclose(resize(image, height, width), value, rtol=1e-14)
    ramp = np.arange(8.0)[:, None] * np.ones((1, 3))
    np.testing.assert_allclose(resize(ramp, 8 * height, 3).mean(), 3.5, rtol=1e-12)
