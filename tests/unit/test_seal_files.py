"""Seals as files: kinds of model files, signatures, and everything that can be wrong with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vauban.artifacts import seal as module
from vauban.artifacts.seal import read_key, seal, seal_path, verify
from vauban.schema.errors import BadOption, CorruptFile, UnknownName

KEY, OTHER = b"0123456789abcdef", b"fedcba9876543210"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.arange(300.0).reshape(20, 15), "b": torch.zeros(4)}, path)
    return path


def test_a_sealed_file_is_intact_and_says_that_it_is_not_signed(model):
    made = seal(model)
    assert made.tensors == 2
    assert not made.signed
    report = verify(model)
    assert report.intact
    assert report.signature == "unsigned"
    assert "not an attacker" in report.notes[0]
    json.dumps([made.as_dict(), report.as_dict()])
    assert "intact" in str(report)


def test_the_same_file_gives_the_same_seal(model):
    texts = []
    for _ in range(2):
        seal(model, key=KEY, created="2030-01-01T00:00:00+00:00")
        texts.append(seal_path(model).read_bytes())
    assert texts[0] == texts[1]


def test_a_seal_of_other_bytes_is_not_overwritten(model):
    seal(model)
    kept = seal_path(model).read_bytes()
    save_file({"w": torch.ones(2)}, model)
    with pytest.raises(BadOption, match="--force"):
        seal(model)
    assert seal_path(model).read_bytes() == kept
    seal(model, force=True)
    assert verify(model).intact


def test_missing_added_and_reshaped_tensors_are_named(model):
    seal(model)
    save_file({"w": torch.arange(300.0).reshape(15, 20), "c": torch.zeros(4)}, model)
    report = verify(model)
    assert (report.missing, report.added, report.reshaped) == (("b",), ("c",), ("w",))
    assert not report.intact


def test_a_changed_header_leaves_the_tensors_as_they_are(model):
    seal(model)
    save_file(load_file(model), model, metadata={"note": "changed"})
    report = verify(model)
    assert not report.intact
    assert report.altered == ()
    assert any("outside" in note for note in report.notes)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_is_sealed_tensor_by_tensor(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    state = {"state_dict": {"w": torch.arange(300.0), "h": torch.ones(5, dtype=torch.bfloat16)}, "epoch": 3}
    torch.save(state, path)
    assert seal(path).tensors == 2
    state["state_dict"]["w"][7] = -7.0
    state["state_dict"]["w"][290] += 0.5
    torch.save(state, path)
    report = verify(path)
    assert [(c.tensor, c.index, c.bits, c.before) for c in report.changes[:1]] == [("state_dict.w", (7,), (31,), 7.0)]
    assert report.changes[1].index == (290,)
    assert report.altered == ("state_dict.w",)


@pytest.mark.parametrize("name", ["m.skops", "m.npz", "m.pt2"])
def test_other_files_are_sealed_as_a_whole_and_say_so(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"some model")
    assert seal(path).tensors is None
    assert verify(path).intact
    path.write_bytes(b"some modem")
    report = verify(path)
    assert not report.intact
    assert any("as a whole" in note for note in report.notes)


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_a_pickled_model_is_never_executed(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"model": _Trap()}, path)
    assert seal(path).tensors is None
    assert verify(path).intact


def test_signatures(model):
    assert seal(model, key=KEY).signed
    assert verify(model, key=KEY).signature == "valid"
    assert verify(model, key=KEY).intact
    wrong = verify(model, key=OTHER)
    assert (wrong.signature, wrong.intact, wrong.file_matches) == ("wrong", False, True)
    assert verify(model).signature == "unchecked"


def test_a_rewritten_or_unsigned_seal_does_not_pass_with_a_key(model):
    seal(model, key=KEY)
    where = seal_path(model)
    content = json.loads(where.read_text())
    save_file({"w": torch.ones(3)}, model)
    seal(model, force=True)
    report = verify(model, key=KEY)
    assert (report.signature, report.intact) == ("missing", False)
    forged = json.loads(where.read_text()) | {"signature": content["signature"]}
    where.write_text(json.dumps(forged))
    assert (verify(model, key=KEY).signature, verify(model, key=KEY).intact) == ("wrong", False)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(module.KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    monkeypatch.setenv(module.KEY_VARIABLE, "x" * 20)
    assert read_key(None) == b"x" * 20
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    assert read_key(file) == KEY
    file.write_bytes(b"short")
    with pytest.raises(BadOption, match="16"):
        read_key(file)
    with pytest.raises(UnknownName, match="key file"):
        read_key(tmp_path / "nothing")


def test_what_is_not_there_is_said(model, tmp_path):
    with pytest.raises(UnknownName, match="vauban seal"):
        verify(model)
    for verb in (seal, verify):
        with pytest.raises(UnknownName, match="no file"):
            verb(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "not json", '{"version": 1}', '{"version": 99, "tensors": {}}']
)
def test_a_corrupt_seal_is_said(model, text):
    seal_path(model).write_text(text)
    with pytest.raises(CorruptFile, match="seal"):
        verify(model)


@pytest.mark.parametrize(
    "change", [{"digests": "AAAA"}, {"parity": "?"}, {"shape": "x"}, {"parity": "AAAA"}, {"digests": "AAAAAAAAAAA="}]
)
def test_a_damaged_seal_is_not_read_as_a_damaged_model(model, change):
    seal(model)
    content = json.loads(seal_path(model).read_text())
    content["tensors"]["w"] |= change
    seal_path(model).write_text(json.dumps(content))
    save_file({"w": torch.ones(20, 15), "b": torch.zeros(4)}, model)
    with pytest.raises(CorruptFile, match="damaged"):
        verify(model)


def test_a_truncated_model_is_said(model):
    seal(model)
    model.write_bytes(model.read_bytes()[:-100])
    report = verify(model)
    assert not report.intact
    assert any("damaged" in note for note in report.notes)
    with pytest.raises(CorruptFile):
        seal(model, force=True)


def test_the_original_must_be_the_sealed_file(model, tmp_path):
    seal(model)
    other = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(2)}, other)
    save_file({"w": torch.ones(20, 15), "b": torch.zeros(4)}, model)
    with pytest.raises(BadOption, match="not the file that was sealed"):
        verify(model, against=other)


def test_a_rewritten_tensor_is_counted_and_the_list_is_cut(tmp_path):
    path, original = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    save_file({"w": torch.zeros(5000)}, path)
    original.write_bytes(path.read_bytes())
    seal(path)
    save_file({"w": torch.ones(5000)}, path)
    report = verify(path, against=original)
    assert report.count == 5000
    assert len(report.changes) == module.LISTED
    assert len(verify(path).regions) == -(-5000 // 128)


def test_empty_tensors_and_files_without_tensors_are_sealed(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"none": torch.zeros(0, 4)}, path)
    assert seal(path).tensors == 1
    assert verify(path).intact
    save_file({}, path)
    assert verify(path).missing == ("none",)


def test_the_seal_stays_small(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.from_numpy(np.random.default_rng(0).random(2**19, dtype=np.float32))}, path)
    seal(path)
    assert seal_path(path).stat().st_size < 0.05 * path.stat().st_size
