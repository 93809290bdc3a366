"""A seal names what changed: every bit of every kind of number, and any set of changes."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vauban.artifacts.manifest import WORDS, locate, parities, read_tensors
from vauban.artifacts.seal import seal, verify
from vauban.schema.errors import CorruptFile

KINDS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int64": torch.int64,
}


def _tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(13, 17, generator=generator) * 20
    return {"a.bias": torch.ones(3), "layer.weight": plain.to(dtype), "z": torch.tensor(2.5)}


def _flip(path: Path, name: str, element: int, bit: int) -> None:
    """Flip one bit of the stored file, not of a loaded copy."""
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    row = json.loads(data[8 : 8 + length])[name]
    start, end = row["data_offsets"]
    width = (end - start) // max(int(np.prod(row["shape"])), 1)
    data[8 + length + start + element * width + bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_position_is_named(tmp_path, kind):
    path = tmp_path / "m.safetensors"
    dtype = KINDS[kind]
    tensors = _tensors(dtype)
    save_file(tensors, path)
    seal(path)
    untouched = path.read_bytes()
    for bit in range(8 * dtype.itemsize):
        element = (37 * bit + 5) % 221
        _flip(path, "layer.weight", element, bit)
        report = verify(path)
        assert not report.intact
        assert not report.file_matches
        assert report.altered == ("layer.weight",)
        assert report.regions == ()
        (change,) = report.changes
        assert change.tensor == "layer.weight"
        assert change.index == (element // 17, element % 17)
        assert change.bits == (bit,)
        assert change.before == tensors["layer.weight"].flatten()[element].item()
        path.write_bytes(untouched)
        assert verify(path).intact


def test_a_scalar_and_a_sign_are_named(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file(_tensors(torch.float32), path)
    seal(path)
    _flip(path, "z", 0, 31)
    (change,) = verify(path).changes
    assert (change.tensor, change.index, change.bits) == ("z", (), (31,))
    assert (change.before, change.after) == (2.5, -2.5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 220), st.integers(0, 31), min_size=1, max_size=12), st.booleans())
def test_every_change_is_named_or_lies_in_a_named_range(tmp_path, flips, copy_at_hand):
    path, original = tmp_path / "m.safetensors", tmp_path / "original.safetensors"
    save_file(_tensors(torch.float32), path)
    original.write_bytes(path.read_bytes())
    seal(path, force=True)
    for element, bit in flips.items():
        _flip(path, "layer.weight", element, bit)
    report = verify(path, against=original if copy_at_hand else None)
    named = {c.index[0] * 17 + c.index[1]: c.bits for c in report.changes}
    crowded = {e for e in flips if sum(other // WORDS == e // WORDS for other in flips) > 1}
    if copy_at_hand:
        assert named == {e: (b,) for e, b in flips.items()}
        return
    assert named == {e: (b,) for e, b in flips.items() if e not in crowded}
    ranges = {(r.first, r.last) for r in report.regions}
    assert ranges == {(e // WORDS * WORDS, min(e // WORDS * WORDS + WORDS, 221) - 1) for e in crowded}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]), st.integers(0, WORDS - 1))
def test_one_changed_word_is_located(seed, width, place):
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 256, WORDS * width).astype(np.uint8)
    changed = block.copy()
    delta = rng.integers(0, 256, width).astype(np.uint8)
    delta[rng.integers(width)] |= 1
    changed[place * width : (place + 1) * width] ^= delta
    (p, q), (p2, q2) = parities(block, width), parities(changed, width)
    assert locate(p[0] ^ p2[0], q[0] ^ q2[0]) == place
    assert (p[0] ^ p2[0] == delta).all()


def test_the_reader_agrees_with_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = _tensors(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_tensors(path)
    assert set(found) == set(tensors)
    for name, raw in found.items():
        assert raw.data.tobytes() == tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw.shape == tuple(tensors[name].shape)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path, junk):
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"junk{suffix}"
        path.write_bytes(junk)
        with contextlib.suppress(CorruptFile):
            read_tensors(path)
