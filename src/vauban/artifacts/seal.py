"""Seal a model file, and verify it later: which tensor, which element, which bit changed.

A seal is `<file>.seal.json` beside the file. Without a key it shows accidents and careless changes; whoever can write the
file can write the seal too, so against an attacker it must be signed (HMAC-SHA256 with a secret key) or kept elsewhere.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vauban.artifacts.manifest import (
    DIGEST,
    WORDS,
    Entry,
    Raw,
    block_digest,
    entry,
    file_sha256,
    locate,
    parities,
    read_tensors,
)
from vauban.artifacts.seal_report import Changed, Region, Report, Sealed, Signature
from vauban.schema.errors import BadOption, CorruptFile, UnknownName

VERSION = 1
SUFFIX = ".seal.json"
KEY_VARIABLE = "VAUBAN_SEAL_KEY"
LISTED = 1000
"""Changes listed at most; all are counted."""


def seal_path(path: Path) -> Path:
    """Where the seal of a file lies."""
    return path.with_name(path.name + SUFFIX)


def read_key(key_file: str | Path | None) -> bytes | None:
    """The signing key: the bytes of a file (final line break removed), else `VAUBAN_SEAL_KEY`, else None.

    Raises UnknownName where there is no such file, BadOption for a key of fewer than 16 bytes.
    """
    if key_file is None:
        key = os.environ.get(KEY_VARIABLE, "").encode() or None
    else:
        key = _existing(key_file, "key file").read_bytes().rstrip(b"\r\n")
    if key is not None and len(key) < 16:
        raise BadOption(f"The signing key has {len(key)} bytes: a key that cannot be guessed needs 16 at least.")
    return key


def seal(path: str | Path, *, key: bytes | None = None, force: bool = False, created: str | None = None) -> Sealed:
    """Write `<file>.seal.json`.

    The same file, key and `created` (an ISO time, now by default) give the same bytes. `.safetensors` files and state
    dicts (`.pt`, `.pth`) are sealed tensor by tensor, all other files as a whole. Raises UnknownName where there is no
    such file, BadOption where a seal of other bytes is there already and `force` is not set, CorruptFile for a damaged file.
    """
    path = _existing(path, "file")
    where, digest = seal_path(path), file_sha256(path)
    if where.exists() and not force and _sealed_digest(where) != digest:
        raise BadOption(f"{where.name} seals other bytes than {path.name} has now: verify first, or use --force.")
    tensors = read_tensors(path)
    content: dict[str, Any] = {
        "version": VERSION,
        "created": created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "file": {"name": path.name, "size": path.stat().st_size, "sha256": digest},
        "block_words": WORDS,
        "tensors": None if tensors is None else {name: entry(raw).to_json() for name, raw in tensors.items()},
    }
    content["signature"] = None if key is None else {"method": "hmac-sha256", "value": _sign(content, key)}
    draft = where.with_name(where.name + f".{os.getpid()}.tmp")
    try:
        draft.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")
        draft.replace(where)
    finally:
        draft.unlink(missing_ok=True)
    return Sealed(str(where), digest, None if tensors is None else len(tensors), key is not None)


def verify(
    path: str | Path,
    *,
    key: bytes | None = None,
    seal_file: str | Path | None = None,
    against: str | Path | None = None,
) -> Report:
    """Compare a file with its seal (beside it, or `seal_file`); with `against`, an intact copy, every change is named.

    From the seal alone one changed element in each block of 128 is named with its bits and its old value; where more
    changed, the block is. With a key an unsigned seal does not pass. Raises UnknownName where file or seal are missing,
    CorruptFile where the seal cannot be read, BadOption where `against` is not the sealed file.
    """
    path = _existing(path, "file")
    where = Path(seal_file) if seal_file is not None else seal_path(path)
    if not where.is_file():
        raise UnknownName(
            f"There is no seal {where.name}: make one with  vauban seal {path.name}  while the file is trusted."
        )
    content = _read(where)
    signature = _signature(content, key)
    matches = file_sha256(path) == content["file"]["sha256"]
    intact = matches and signature in ("valid", "unsigned", "unchecked")
    notes = list(_SIGNATURE_NOTES[signature])
    if matches:
        return Report(str(path), intact, signature, True, notes=tuple(notes))
    if content["tensors"] is None:
        notes.append("This kind of file is sealed as a whole: which tensor changed cannot be told.")
        return Report(str(path), False, signature, False, notes=tuple(notes))
    tensors, trouble = _present(path)
    if tensors is None:
        return Report(str(path), False, signature, False, notes=(*notes, trouble))
    original = None if against is None else _original(against, content)
    return _compare(path, signature, notes, _entries(content, where), tensors, original)


@dataclass
class _Findings:
    changes: list[Changed] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, change: Changed) -> None:
        self.count += 1
        if len(self.changes) < LISTED:
            self.changes.append(change)


def _compare(
    path: Path,
    signature: Signature,
    notes: list[str],
    sealed: Mapping[str, Entry],
    tensors: Mapping[str, Raw],
    original: Mapping[str, Raw] | None,
) -> Report:
    found = _Findings()
    for name in sorted(sealed.keys() & tensors.keys()):
        old, raw = sealed[name], tensors[name]
        if (old.dtype, old.shape) != (raw.dtype, raw.shape):
            found.reshaped.append(name)
            found.altered.append(name)
        elif original is not None:
            _against(name, original[name], raw, found)
        else:
            _from_seal(name, old, raw, found)
    missing, added = sorted(sealed.keys() - tensors.keys()), sorted(tensors.keys() - sealed.keys())
    if not (found.altered or missing or added):
        notes.append("Every tensor is as sealed: the bytes that differ are outside of them (header, metadata, order).")
    if found.count > LISTED:
        notes.append(f"{found.count} elements changed; the first {LISTED} are listed.")
    return Report(
        path=str(path),
        intact=False,
        signature=signature,
        file_matches=False,
        changes=tuple(found.changes),
        regions=tuple(found.regions),
        altered=tuple(found.altered),
        missing=tuple(missing),
        added=tuple(added),
        reshaped=tuple(found.reshaped),
        count=found.count,
        notes=tuple(notes),
    )


def _from_seal(name: str, old: Entry, raw: Raw, found: _Findings) -> None:
    """What the seal alone can tell of one tensor."""
    width, size = raw.width, WORDS * raw.width
    blocks = -(-len(raw.data) // size)
    if (len(old.digests), len(old.parity)) != (DIGEST * blocks, 2 * width * blocks):
        raise CorruptFile("The seal is damaged: take it from a backup, or seal a trusted copy anew.")
    before = np.frombuffer(old.parity, dtype=np.uint8).reshape(-1, 2, width)
    altered = False
    for number, start in enumerate(range(0, len(raw.data), size)):
        block = np.array(raw.data[start : start + size])
        digest = old.digests[DIGEST * number : DIGEST * (number + 1)]
        if block_digest(block) == digest:
            continue
        altered = True
        p, q = parities(block, width)
        change = before[number, 0] ^ p[0]
        place = locate(change, before[number, 1] ^ q[0])
        if place is not None and (place + 1) * width <= len(block):
            word = slice(place * width, (place + 1) * width)
            after = block[word].copy()
            block[word] ^= change
            if block_digest(block) == digest:
                found.add(_changed(name, raw, number * WORDS + place, block[word], after))
                continue
        found.regions.append(Region(name, number * WORDS, number * WORDS + len(block) // width - 1))
    if altered:
        found.altered.append(name)


def _against(name: str, old: Raw, raw: Raw, found: _Findings) -> None:
    """Every change of one tensor, from an intact copy."""
    width = raw.width
    before, after = (np.asarray(r.data).reshape(-1, width) for r in (old, raw))
    places = np.flatnonzero((before != after).any(1))
    for place in places[:LISTED].tolist():
        found.add(_changed(name, raw, place, before[place], after[place]))
    found.count += max(len(places) - LISTED, 0)
    if len(places):
        found.altered.append(name)


def _changed(name: str, raw: Raw, place: int, before: np.ndarray, after: np.ndarray) -> Changed:
    flipped = np.unpackbits(before ^ after, bitorder="little")
    fits = raw.width * int(np.prod(raw.shape, dtype=np.int64)) == len(raw.data)
    index = tuple(int(i) for i in np.unravel_index(place, raw.shape)) if fits and raw.shape else (place,) * (not fits)
    return Changed(
        tensor=name,
        index=index,
        bits=tuple(np.flatnonzero(flipped).tolist()),
        before=raw.value(before.tobytes()),
        after=raw.value(after.tobytes()),
    )


_SIGNATURE_NOTES: Mapping[Signature, tuple[str, ...]] = {
    "valid": (),
    "wrong": ("The signature does not fit: the seal was changed, or it was signed with another key.",),
    "missing": ("A key was given, but the seal is not signed: somebody may have put it in the place of a signed one.",),
    "unsigned": ("The seal is not signed: it detects accidents, not an attacker who rewrites the seal.",),
    "unchecked": ("The seal is signed, but no key was given: the signature was not checked.",),
}


def _signature(content: Mapping[str, Any], key: bytes | None) -> Signature:
    given = content["signature"]
    if given is None:
        return "unsigned" if key is None else "missing"
    if key is None:
        return "unchecked"
    return "valid" if hmac.compare_digest(str(given.get("value")).encode(), _sign(content, key).encode()) else "wrong"


def _sign(content: Mapping[str, Any], key: bytes) -> str:
    signed = {name: value for name, value in content.items() if name != "signature"}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _read(where: Path) -> dict[str, Any]:
    try:
        content = json.loads(where.read_text(encoding="utf-8"))
        version, tensors, signature = content["version"], content["tensors"], content["signature"]
        whole = isinstance(content["file"]["sha256"], str) and isinstance(tensors, dict | None)
        whole = whole and isinstance(signature, dict | None)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole, version = False, VERSION
    if version != VERSION:
        raise CorruptFile(
            f"{where.name} is a seal of version {version!r}, this program reads version {VERSION}: update it."
        )
    if not whole:
        raise CorruptFile(
            f"{where.name} is no seal, or is damaged: take it from a backup, or seal a trusted copy anew."
        )
    found: dict[str, Any] = content
    return found


def _sealed_digest(where: Path) -> str:
    try:
        return str(_read(where)["file"]["sha256"])
    except CorruptFile:
        return ""


def _entries(content: Mapping[str, Any], where: Path) -> dict[str, Entry]:
    """The sealed tensors, checked for consistency so that a damaged seal is not read as a damaged model."""
    try:
        entries = {str(name): Entry.from_json(row) for name, row in content["tensors"].items()}
        whole = content["block_words"] == WORDS
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise CorruptFile(f"{where.name} is damaged: take it from a backup, or seal a trusted copy anew.")
    return entries


def _present(path: Path) -> tuple[dict[str, Raw] | None, str]:
    try:
        tensors = read_tensors(path)
    except CorruptFile as error:
        return None, str(error)
    return tensors, "" if tensors is not None else "The file changed so that its tensors can no longer be read."


def _original(against: str | Path, content: Mapping[str, Any]) -> dict[str, Raw]:
    path = _existing(against, "file")
    if file_sha256(path) != content["file"]["sha256"]:
        raise BadOption(f"{path.name} is not the file that was sealed: give an intact copy, or leave --against out.")
    tensors = read_tensors(path)
    assert tensors is not None, "the sealed file had tensors"
    return tensors


def _existing(path: str | Path, what: str) -> Path:
    found = Path(path)
    if not found.is_file():
        raise UnknownName(f"There is no {what} {str(path)!r}.")
    return found
