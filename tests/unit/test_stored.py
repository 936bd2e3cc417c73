"""Stored images become the very numbers that a batch in memory holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedfair.batch import MultimodalBatch
from fedfair.data.encode import to_batch
from fedfair.data.pixels import Pixels
from fedfair.data.schema import SiteRecords
from fedfair.stored import Stored, StoredBatch
from tests.unit.data.test_pixels import SCHEMA, N, twins

CPU = torch.device("cpu")
MOMENTS = {"lab": np.array([[0.1], [2.0]])}


def batches(dtype: torch.dtype, device: torch.device = CPU) -> tuple[StoredBatch, MultimodalBatch]:
    """Return the same records stored, and in memory from float32."""
    eight, written = twins()
    groups = eight.attributes["sex"]
    stored = to_batch(eight, SCHEMA, MOMENTS, groups).to(device, dtype)
    assert isinstance(stored, StoredBatch)
    return stored, to_batch(written, SCHEMA, MOMENTS, groups).to(device, dtype)


def assert_equal(one: MultimodalBatch, other: MultimodalBatch) -> None:
    assert type(one) is type(other) is MultimodalBatch
    assert list(one.modalities) == list(other.modalities) == list(SCHEMA.modalities)
    for own, expected in zip(one.tensors(), other.tensors(), strict=True):
        assert own.dtype == expected.dtype
        assert own.device == expected.device
        assert torch.equal(own, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "index",
    [torch.arange(N), torch.tensor([3, 3, 39, 0]), torch.arange(0), torch.arange(N) % 3 == 1],
    ids=["all", "some", "none", "mask"],
)
def test_the_same_bits_as_from_memory(dtype: torch.dtype, index: torch.Tensor) -> None:
    stored, memory = batches(dtype)
    assert len(stored) == len(memory) == N
    assert_equal(stored.select(index), memory.select(index))


def test_all_codes_are_divided_as_numpy_does() -> None:
    codes = np.arange(256, dtype=np.uint8)[:, None]
    read = Stored(Pixels.of(codes)).read(torch.arange(256))
    assert read.numpy().tobytes() == (codes / np.float32(255)).tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_bits_on_a_gpu() -> None:
    stored, memory = batches(torch.float32, torch.device("cuda"))
    assert_equal(stored.select(torch.tensor([5, 1])), memory.select(torch.tensor([5, 1]).cuda()))
    codes = np.arange(256, dtype=np.uint8)[:, None]
    read = Stored(Pixels.of(codes), torch.device("cuda")).read(torch.arange(256))
    assert read.cpu().numpy().tobytes() == (codes / np.float32(255)).tobytes()


def test_what_is_missing_is_zero_whatever_its_code() -> None:
    eight, _ = twins()
    stored, _ = batches(torch.float32)
    read = stored.select(torch.arange(N)).modalities
    pixels = eight.modalities["oct"]
    assert isinstance(pixels, Pixels)
    assert (read["oct"][torch.from_numpy(~pixels.seen)] == 0).all()
    assert np.array_equal(read["oct"].numpy(), np.nan_to_num(pixels.values()))


def test_reading_a_batch_reads_no_more(tmp_path: Path) -> None:
    """A mapped file of 64 MiB: a batch of 4 records takes its own pages, and what the kernel reads around."""
    file = tmp_path / "codes"
    codes = np.memmap(file, np.uint8, "w+", shape=(256, 1, 512, 512))
    codes[:] = np.arange(256, dtype=np.uint8)[:, None, None, None]
    codes.flush()
    del codes
    mapped = np.memmap(file, np.uint8, "r", shape=(256, 1, 512, 512))
    pixels = Pixels.of(np.asarray(mapped))
    before = resident()
    chosen = SiteRecords({"slo": pixels}, np.zeros(256, np.int64), {}).select(np.arange(256)[::-1])
    raw = chosen.modalities["slo"]
    assert isinstance(raw, Pixels)
    read = Stored(raw).read(torch.tensor([0, 255, 128, 1]))
    assert (read[:, 0, 0, 0] * 255).round().tolist() == [255, 0, 127, 254]
    # Codes, float32 and its copy: 4 x 0.25 MiB x (1 + 4 + 4), and as much again for what malloc keeps.
    assert resident() - before < 2 * 9 * 2**20
    assert raw.shape == (256, 1, 512, 512)


def resident() -> int:
    """Return the memory of this process that is in use, file-backed pages included."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))
