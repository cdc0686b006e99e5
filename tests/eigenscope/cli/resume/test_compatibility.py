from pathlib import Path

import pytest

from eigenscope.cli.resume.compatibility import check_network, check_resume

P = Path("runs/demo/version_3/checkpoints/last.ckpt")
LINKED = ("num_classes",)


def configuration(width=8, warm_start=None, **net):
    net = {"class_path": "Net", "init_args": {"width": width} | net}
    return {
        "model": {"class_path": "Module", "init_args": {"net": net}},
        "seed_everything": 0,
        "warm_start": warm_start,
    }


def checkpoint(**more):
    return {"state_dict": {}, "loops": {}, "pytorch-lightning_version": "2", "optimizer_states": []} | more


def hyper_parameters(config):
    model = config["model"]
    return {"_class_path": model["class_path"], "_instantiator": "some.function", **model["init_args"]}


def resume(saved, now):
    resumption = check_resume(saved, P, now, {}, LINKED)
    assert len(resumption.lines) <= 1
    return resumption.lines[0] if resumption.lines else None


def test_its_own_configuration_goes_on():
    assert resume(checkpoint(configuration=configuration()), configuration()) is None
    with pytest.raises(
        ValueError, match=r"(?s)contradicts that of the checkpoint .*\n  seed_everything: .*\n.*--warm_start"
    ):
        resume(checkpoint(configuration=configuration()), configuration() | {"seed_everything": 1})


def test_without_a_configuration_the_models_are_compared_but_for_what_the_data_fills_in():
    saved = checkpoint(hyper_parameters=hyper_parameters(configuration(num_classes=7)))
    assert resume(saved, configuration() | {"seed_everything": 1}).endswith("its model alone was compared")
    assert check_network(saved, P, configuration(), LINKED) is None
    with pytest.raises(ValueError, match=r"\n  model\.init_args\.net\.init_args\.width: checkpoint 8, now 9\n"):
        resume(saved, configuration(width=9))
    with pytest.raises(ValueError, match=r"\n  model\.init_args\.net\.init_args\.width: checkpoint 8, now 9$"):
        check_network(saved, P, configuration(width=9), LINKED)
    assert resume(checkpoint(), configuration()).endswith("nothing of it could be compared")


def test_a_network_may_be_evaluated_with_other_options_of_its_training():
    saved = checkpoint(configuration=configuration())
    now = configuration() | {"seed_everything": 5}
    now["model"]["init_args"]["lr"] = 3
    assert check_network(saved, P, now, LINKED) is None


def test_a_warm_start_is_no_resume_unless_the_run_began_with_it():
    with pytest.raises(ValueError, match="exclude each other"):
        resume(checkpoint(configuration=configuration()), configuration(warm_start="a"))
    with pytest.raises(ValueError, match="exclude each other"):
        resume(checkpoint(hyper_parameters=hyper_parameters(configuration())), configuration(warm_start="a"))
    assert resume(checkpoint(configuration=configuration(warm_start="a")), configuration(warm_start="a")) is None
    assert resume(checkpoint(configuration=configuration(warm_start="a")), configuration()) is None
    mapped = configuration(warm_start="a") | {"warm_start_map": {"head": None}}
    with pytest.raises(ValueError, match="exclude each other"):
        resume(checkpoint(configuration=configuration(warm_start="a")), mapped)


def test_a_model_without_arguments_is_compared_too():
    bare = {"model": {"class_path": "Module"}}
    assert check_network(checkpoint(configuration=bare), P, bare, LINKED) is None
