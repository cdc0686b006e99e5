import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eigenscope.cli.resume.warm_start import misshaped, read_weights, warm_start


class Model(nn.Module):
    def __init__(self, classes: int = 3, body: str = "body") -> None:
        super().__init__()
        self.net = nn.Module()
        self.net.add_module(body, nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)))
        self.net.add_module("head", nn.Linear(4, classes))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_every_parameter_and_persistent_buffer_is_taken():
    source, target = Model(), Model()
    source.net.body[1].running_mean.fill_(5)
    started = warm_start(target, source.state_dict())
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in source.state_dict().items())
    assert (started.taken, started.initialised, started.left_out) == (9, (), ())
    assert str(started) == "9 of the module's 9 tensors are the checkpoint's"
    source.net.body[0].weight.data.zero_()
    assert target.net.body[0].weight.abs().sum() > 0  # a copy


def test_dtypes_stay_those_of_the_module():
    source, target = Model().double(), Model().half()
    warm_start(target, source.state_dict())
    assert target.net.head.weight.dtype == torch.float16
    assert torch.equal(target.net.head.weight, source.net.head.weight.half())


def test_all_that_does_not_fit_is_listed_and_nothing_is_changed():
    source, target = Model(classes=5), Model()
    weights = copied(source) | {"net.extra.weight": torch.ones(1)}
    del weights["net.body.0.bias"], weights["net.body.0.weight"]
    before = copied(target)
    with pytest.raises(ValueError, match="do not fit the module") as error:
        warm_start(target, weights)
    assert str(error.value).splitlines()[1:-1] == [
        "  missing from the checkpoint: net.body.0.weight",
        "  missing from the checkpoint: net.body.0.bias",
        "  of another shape: net.head.weight is (5, 4) in the checkpoint, (3, 4) in the module",
        "  of another shape: net.head.bias is (5,) in the checkpoint, (3,) in the module",
        "  not in the module: net.extra.weight",
    ]
    assert "--warm_start_map" in str(error.value).splitlines()[-1]
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_part_can_be_left_as_initialised():
    source, target = Model(classes=5), Model()
    before = copied(target)
    started = warm_start(target, source.state_dict(), {"net.head": None})
    assert torch.equal(target.net.body[0].weight, source.net.body[0].weight)
    assert torch.equal(target.net.head.weight, before["net.head.weight"])
    heads = ("net.head.weight", "net.head.bias")
    assert (started.taken, started.initialised, started.left_out) == (7, heads, heads)
    assert str(started).endswith(
        "7 of the module's 9 tensors are the checkpoint's, 2 are as initialised, 2 of the checkpoint's are left out"
    )


def test_a_part_of_either_side_alone_can_be_left_out():
    source, target = Model(), Model()
    weights = copied(source)
    more = weights | {"net.extra": torch.ones(1)}
    assert warm_start(target, more, {"net.extra": None}).left_out == ("net.extra",)
    less = {name: tensor for name, tensor in weights.items() if "head" not in name}
    assert warm_start(target, less, {"net.head": None}).initialised == ("net.head.weight", "net.head.bias")


def test_parts_can_go_elsewhere():
    source, target = Model(body="trunk"), Model()
    warm_start(target, source.state_dict(), {"net.trunk": "net.body"})
    assert torch.equal(target.net.body[0].weight, source.net.trunk[0].weight)
    bare = {name.removeprefix("net."): tensor for name, tensor in copied(Model()).items()}
    warm_start(target, bare, {"": "net"})
    assert torch.equal(target.net.body[0].weight, bare["body.0.weight"])
    below = {f"model.{name}": tensor for name, tensor in copied(Model()).items()}
    warm_start(target, below, {"model": ""})
    assert torch.equal(target.net.head.bias, below["model.net.head.bias"])


def test_the_longest_prefix_decides():
    source, target = Model(), Model()
    before = copied(target)
    mapping = {"net": None, "net.head": "net.head", "net.head.bias": None}
    started = warm_start(target, source.state_dict(), mapping)
    assert started.taken == 1
    assert torch.equal(target.net.head.weight, source.net.head.weight)
    assert torch.equal(target.net.head.bias, before["net.head.bias"])
    assert torch.equal(target.net.body[0].weight, before["net.body.0.weight"])


def test_what_an_entry_leads_to_must_be_whole():
    weights = copied(Model())
    weights["net.old.weight"] = weights.pop("net.head.weight")
    with pytest.raises(ValueError, match=r"missing from the checkpoint: net\.head\.bias\n"):
        warm_start(Model(), weights, {"net": None, "net.old": "net.head"})


def test_prefixes_are_whole_parts_of_names():
    alike = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    assert warm_start(alike, copied(alike), {"a": None}).initialised == ("a.weight", "a.bias")
    with pytest.raises(
        ValueError, match=r"no name in the checkpoint begins with the whole parts 'net\.bod'.* net\.body"
    ):
        warm_start(Model(), Model().state_dict(), {"net.bod": "net.body"})
    with pytest.raises(ValueError, match=r"'net\.'"):
        warm_start(Model(), Model().state_dict(), {"net.": None})
    with pytest.raises(
        ValueError, match=r"no name in the checkpoint or the module .*'net\.haed'.*did you mean net\.head"
    ):
        warm_start(Model(), Model().state_dict(), {"net.haed": None})


def test_contradictory_maps_are_refused():
    weights = copied(Model()) | {"other.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"leads both net\.head\.bias and other\.bias to net\.head\.bias"):
        warm_start(Model(), weights, {"other": "net.head"})
    with pytest.raises(ValueError, match="leaves nothing of the checkpoint"):
        warm_start(Model(), Model().state_dict(), {"": None})


def test_tied_weights_stay_tied():
    def tied():
        model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
        model["b"].weight = model["a"].weight
        return model

    source, target = tied(), tied()
    warm_start(target, source.state_dict(), {"b": None})
    assert target["a"].weight is target["b"].weight
    assert torch.equal(target["b"].weight, source["a"].weight)


def test_weights_are_read_from_checkpoints_safetensors_and_bare_dictionaries(tmp_path):
    weights = copied(Model())
    torch.save({"state_dict": weights | {"_extra_state": {}}, "epoch": 3}, tmp_path / "a.ckpt")
    torch.save(weights, tmp_path / "b.pt")
    save_file(weights, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        read = read_weights(path)
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_without_weights_are_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "none.ckpt")
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    torch.save({"state_dict": copied(Model()), "evil": Touch(tmp_path / "touched")}, tmp_path / "evil.ckpt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    for name, message in {
        "none.ckpt": "has no state_dict",
        "bad.safetensors": "is damaged or no safetensors file",
        "nowhere.safetensors": "does not exist",
        "nowhere.ckpt": "does not exist",
        ".": "must be a file of weights",
        "evil.ckpt": "could execute code",
        "evil.pkl": "is not a zip archive, as torch writes",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_other_shapes_are_told():
    shapes = {name: tuple(tensor.shape) for name, tensor in Model(classes=5).state_dict().items()}
    assert misshaped(Model(), shapes | {"more": (1,)}) == [
        "net.head.weight is (5, 4) in the checkpoint, (3, 4) in the module",
        "net.head.bias is (5,) in the checkpoint, (3,) in the module",
    ]
    assert misshaped(Model(classes=5), shapes) == []
