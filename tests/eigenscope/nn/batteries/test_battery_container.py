import hashlib
import json
import math
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.nn.batteries.battery_container import BatteryEntry, load_batteries, save_batteries

SMALL = {"num_points": 6, "dim": 4, "patch_size": 4, "hidden": 8, "depth": 1, "num_cross": 1}
ENTRIES = (
    BatteryEntry(("gaussian",), 2000, {"mse": 0.1 + 0.2, "cv": math.inf}),
    BatteryEntry(("pink", "brown"), 10),
    BatteryEntry(),
)


@pytest.fixture
def array():
    torch.manual_seed(0)
    return BatteryArray(3, **SMALL)


@pytest.fixture
def path(array, tmp_path):
    path = tmp_path / "batteries.safetensors"
    save_batteries(path, array, ENTRIES)
    return path


def rewrite(path, change=lambda manifest: None, weights=lambda weights: None, seal=True):
    """Writes the container again, changed, with a fitting checksum of the manifest or the old one."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        held = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    manifest = json.loads(metadata["manifest"])
    manifest = change(manifest) or manifest
    weights(held)
    text = json.dumps(manifest)
    checksum = hashlib.sha256(text.encode()).hexdigest() if seal else metadata["sha256"]
    save_file(held, path, {"manifest": text, "sha256": checksum})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_round_trip_is_exact_to_the_bit(array, tmp_path, dtype):
    array.to(dtype)
    array.gram_precision = "fp32"
    array.encoder[0].bias.data[0, 0] = torch.nan
    save_batteries(tmp_path / "b.safetensors", array, ENTRIES)
    again, entries = load_batteries(tmp_path / "b.safetensors")
    assert entries == ENTRIES
    assert again.num_batteries == 3
    assert again.architecture == array.architecture
    assert again.state_dict().keys() == array.state_dict().keys()
    for name, weight in array.state_dict().items():
        assert again.state_dict()[name].dtype == dtype
        assert torch.equal(again.state_dict()[name].view(torch.uint8), weight.view(torch.uint8)), name
    assert [file.name for file in tmp_path.iterdir()] == ["b.safetensors"]


def test_some_may_be_loaded(array, path):
    some, entries = load_batteries(path, ids=[2, 0])
    assert entries == (ENTRIES[2], ENTRIES[0])
    for name, weight in array.select([2, 0]).state_dict().items():
        assert torch.equal(some.state_dict()[name], weight), name


def test_only_the_rows_of_those_are_read(path):
    content = bytearray(path.read_bytes())
    (header,) = struct.unpack("<Q", content[:8])
    start, end = json.loads(content[8 : 8 + header])["encoder.0.weight"]["data_offsets"]
    content[8 + header + start + (end - start) // 2] ^= 1  # in the row of battery 1
    path.write_bytes(content)
    load_batteries(path, ids=[0, 2])
    for ids in (None, [1], [0, 1]):
        with pytest.raises(ValueError, match="altered: the weights of battery 1 miss their checksum"):
            load_batteries(path, ids)


def test_what_was_loaded_does_not_hang_on_the_file(array, path):
    loaded, _ = load_batteries(path)
    with path.open("r+b") as file:
        file.seek(0, 2)
        length = file.tell()
        file.seek(length // 2)
        file.write(b"\0" * (length - length // 2))
    for name, weight in array.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_every_altered_bit_is_found(path):
    content = path.read_bytes()
    for place in torch.randint(len(content), (200,), generator=torch.Generator().manual_seed(0)).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"battery container .*batteries\.safetensors"):
            load_batteries(path)


def test_every_truncation_is_found(path):
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"battery container .*batteries\.safetensors"):
            load_batteries(path)


def test_a_failure_while_writing_leaves_the_old_container(array, path, monkeypatch):
    before = path.read_bytes()

    def half(weights, file, metadata):
        file.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr("eigenscope.nn.batteries.battery_container.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_batteries(path, array, ENTRIES)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def put(*keys, value):
    def change(manifest):
        place = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", value=2), "format version is 2; this program reads version 1"),
        (put("format", value="other"), "not one of eigenscope batteries"),
        (lambda manifest: [1], "not one of eigenscope batteries"),
        (put("architecture", "hidden", value=9), r"weight .* must be real numbers \(3, 9"),
        (put("architecture", "depth", value=2), "decoder.3.bias has no place"),
        (put("architecture", "num_heads", value=3), "num_heads"),
        (put("architecture", "hidden", value="8"), "architecture.hidden in its manifest is '8'"),
        (put("architecture", "code", value="8"), "architecture in its manifest must have num_points"),
        (put("architecture", value=None), "lacks an architecture"),
        (put("batteries", value=[]), "lacks an architecture or batteries"),
        (lambda manifest: manifest["batteries"].pop() and None, r"weight .* and the manifest knows 2 batteries"),
        (put("batteries", 1, "steps", value="many"), r"batteries\[1\].steps in its manifest is 'many'"),
        (put("batteries", 1, "steps", value=-1), "steps must be at least 0, got -1"),
        (put("batteries", 1, value=3), r"batteries\[1\] in its manifest must have mixture"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(path, change, message):
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        load_batteries(path)


def test_an_edited_manifest_is_found(path):
    rewrite(path, put("batteries", 0, "steps", value=1), seal=False)
    with pytest.raises(ValueError, match="altered: the manifest misses its checksum"):
        load_batteries(path)


def test_weights_that_do_not_fit_are_named(path):
    rewrite(path, weights=lambda held: held.update({"encoder.0.bias": torch.zeros(3, 8, dtype=torch.int32)}))
    with pytest.raises(ValueError, match=r"encoder\.0\.bias must be real numbers .* got torch\.int32"):
        load_batteries(path)
    rewrite(path, weights=lambda held: held.pop("encoder.0.bias"))
    with pytest.raises(ValueError, match=r"encoder\.0\.bias is missing"):
        load_batteries(path)


@pytest.mark.parametrize("ids", [[3], [0, -1]])
def test_a_battery_that_is_not_there_is_named(path, ids):
    with pytest.raises(ValueError, match=rf"no battery {ids[-1]}; there are 0 to 2"):
        load_batteries(path, ids)


def test_no_battery_at_all_is_named(path):
    with pytest.raises(ValueError, match="num_batteries must be at least 1, got 0"):
        load_batteries(path, [])


def test_other_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no battery container .*nowhere"):
        load_batteries(tmp_path / "nowhere")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no manifest"):
        load_batteries(tmp_path / "other.safetensors")


def test_entries_must_be_as_many_as_batteries(array, tmp_path):
    with pytest.raises(ValueError, match="as many as batteries, 3, got 2"):
        save_batteries(tmp_path / "b.safetensors", array, ENTRIES[:2])
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="must be a tuple of names, got 'pink'"):
        BatteryEntry("pink")
