"""What is in a model file, tensor by tensor: names, dtypes, shapes, digests, and codes that locate a changed number.

Each tensor's bytes are cut into blocks of 128 words (a word is one element). A block keeps an 8-byte BLAKE2b digest and
two parity words, as in RAID-6: P, the XOR of its words, and Q, the XOR of its words times powers of 2 in GF(2^8), byte by
byte (H. P. Anvin, "The mathematics of RAID-6"). From P and Q of the sealed and the present block, one changed word is
located and its old value recovered; the digest of the block so restored proves it. Several changed words in a block
are known as a range only. The codes take 1/64 of the tensor and 8 bytes a block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vauban.schema.errors import CorruptFile

WORDS = 128
DIGEST = 8
"""Bytes of a block's digest."""
CHUNK = 2**20
HEADER_LIMIT = 100 * 2**20
"""Bytes of a safetensors header at most, as in its specification."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Names of the safetensors format."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Raw:
    """A tensor as bytes: `data` uint8 `[n]` in row-major order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @property
    def width(self) -> int:
        """Bytes of one word: one element, or one byte where elements are not whole bytes or of an unknown kind."""
        count = math.prod(self.shape)
        whole = self.dtype in DTYPES and count > 0 and len(self.data) % count == 0
        return len(self.data) // count if whole else 1

    def value(self, word: bytes) -> float | int | bool | str:
        """The number that a word stands for; text where it is no finite real number, hexadecimal for unknown kinds."""
        if self.dtype not in DTYPES:
            return word.hex()
        number = torch.frombuffer(bytearray(word), dtype=DTYPES[self.dtype])[0].item()
        plain = isinstance(number, bool | int) or (isinstance(number, float) and math.isfinite(number))
        return number if plain else str(number)


@dataclass(frozen=True)
class Entry:
    """What a seal keeps of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    digests: bytes
    """DIGEST bytes a block."""
    parity: bytes
    """P then Q of each block, each as wide as a word."""

    def to_json(self) -> dict[str, object]:
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "sha256": self.sha256,
            "digests": base64.b64encode(self.digests).decode(),
            "parity": base64.b64encode(self.parity).decode(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Entry:
        """Raises KeyError, TypeError or ValueError where something is missing or not what it should be."""
        shape = value["shape"]
        if not isinstance(shape, list) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("a shape is a list of sizes")
        digests, parity = (base64.b64decode(str(value[name]), validate=True) for name in ("digests", "parity"))
        return cls(str(value["dtype"]), tuple(shape), str(value["sha256"]), digests, parity)


def entry(raw: Raw) -> Entry:
    """Digests and parity of a tensor, in one pass over its bytes."""
    whole, digests, parity = hashlib.sha256(), bytearray(), bytearray()
    for chunk in _chunks(raw):
        whole.update(chunk.tobytes())
        digests += b"".join(block_digest(block) for block in _blocks(chunk, raw.width))
        p, q = parities(chunk, raw.width)
        parity += np.concatenate([p, q], axis=1).tobytes()
    return Entry(raw.dtype, raw.shape, whole.hexdigest(), bytes(digests), bytes(parity))


def block_digest(block: np.ndarray) -> bytes:
    return hashlib.blake2b(block.tobytes(), digest_size=DIGEST).digest()


def parities(data: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """P and Q of each block of `data` uint8 `[n]`: uint8 `[blocks, width]` each; the last block is padded with zeros."""
    size = WORDS * width
    padded = np.zeros(-(-len(data) // size) * size, dtype=np.uint8)
    padded[: len(data)] = data
    words = padded.reshape(-1, WORDS, width)
    weighted = _PRODUCTS[_POWERS[:WORDS, None], words]
    return np.bitwise_xor.reduce(words, axis=1), np.bitwise_xor.reduce(weighted, axis=1)


def locate(change_p: np.ndarray, change_q: np.ndarray) -> int | None:
    """The one word in a block whose change explains both parities, or None. uint8 `[width]`, sealed XOR present.

    With Q = 2^i P in every byte, i is the difference of the logarithms; bytes that did not change say nothing.
    """
    places = set()
    for p, q in zip(change_p.tolist(), change_q.tolist(), strict=True):
        if (p == 0) != (q == 0):
            return None
        if p:
            places.add(int(_LOG[q] - _LOG[p]) % 255)
    return places.pop() if len(places) == 1 and max(places) < WORDS else None


def read_tensors(path: Path) -> dict[str, Raw] | None:
    """The tensors of a `.safetensors` file or of a state dict (`.pt`, `.pth`, weights only); None for any other file.

    Nothing in the file is executed. Raises CorruptFile where the file is not what its name says.
    """
    readers = {".safetensors": _safetensors, ".pt": _state_dict, ".pth": _state_dict}
    reader = readers.get(path.suffix.lower())
    return None if reader is None else reader(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _safetensors(path: Path) -> dict[str, Raw]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 < length <= min(HEADER_LIMIT, size - 8):
            raise CorruptFile(f"{path.name} is no safetensors file: its header's length is impossible. Fetch it again.")
        try:
            header = json.loads(stream.read(length))
            rows = {name: row for name, row in header.items() if name != "__metadata__"}
            spans = {name: tuple(map(int, row["data_offsets"])) for name, row in rows.items()}
            kinds = {name: (str(row["dtype"]), tuple(map(int, row["shape"]))) for name, row in rows.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CorruptFile(
                f"{path.name} is no safetensors file: its header cannot be read. Fetch it again."
            ) from None
    start = 8 + length
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=start) if size > start else np.empty(0, np.uint8)
    found = {}
    for name, span in spans.items():
        if len(span) != 2 or not 0 <= span[0] <= span[1] <= len(data):
            raise CorruptFile(f"{path.name} is cut off or damaged: tensor {name!r} lies outside of the file.")
        found[name] = Raw(*kinds[name], data[span[0] : span[1]])
    return found


def _state_dict(path: Path) -> dict[str, Raw] | None:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever the untrusted bytes provoke: the file is then sealed as bytes only
        return None
    return {name: _raw(tensor) for name, tensor in _walk(loaded, "")}


def _walk(value: object, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield prefix or "tensor", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, f"{prefix}.{key}" if prefix else str(key))


def _raw(tensor: torch.Tensor) -> Raw:
    flat = tensor.detach().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return Raw(_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), data)


def _chunks(raw: Raw) -> Iterator[np.ndarray]:
    step = max(CHUNK // (WORDS * raw.width), 1) * WORDS * raw.width
    for start in range(0, len(raw.data), step):
        yield np.asarray(raw.data[start : start + step])


def _blocks(chunk: np.ndarray, width: int) -> Iterator[np.ndarray]:
    for start in range(0, len(chunk), WORDS * width):
        yield chunk[start : start + WORDS * width]


def _field() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Powers of 2, logarithms, and all products of GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1."""
    powers, log, value = np.zeros(255, dtype=np.uint8), np.zeros(256, dtype=np.int64), 1
    for exponent in range(255):
        powers[exponent], log[value] = value, exponent
        value = (value << 1) ^ (0x11D if value & 0x80 else 0)
    products = np.zeros((256, 256), dtype=np.uint8)
    products[1:, 1:] = powers[(log[1:, None] + log[None, 1:]) % 255]
    return powers, log, products


_POWERS, _LOG, _PRODUCTS = _field()
