import csv
import math
from pathlib import Path
from statistics import median

import pytest
import torch
from emerging_optimizers.soap import SOAP as LibrarySOAP
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from eigenscope.callbacks import EigenbasisRotation
from eigenscope.optim import REKLS, SOAP, SplitOptimizer
from eigenscope.optim.eigenbases.precision_replica import ReferencePrecisionReplica

# a replica at the optimizer's own precision, which must equal it to the bit, is what several tests compare with
pytestmark = pytest.mark.filterwarnings("ignore:replica_precision .* is that of the optimizer")

SHAPES = {"first.weight": (12, 8), "second.weight": (8, 12)}
SPIKE = 14  # 1-based
FRAMES = ("previous", "lag:3", "pre_spike", "post_spike")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Module(LightningModule):
    """A regression, whose loss is 1000 times as large at the spike's batches."""

    def __init__(self, optimizer=None, spikes=(SPIKE - 1,)):
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        self.optimizer = optimizer or split
        self.spikes = spikes

    def configure_optimizers(self):
        made = self.optimizer(list(self.net.named_parameters()))
        return {"optimizer": made, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(made, 5)}}

    def training_step(self, batch, batch_idx):
        x, number = batch
        noise = torch.randn_like(x)  # from the global stream, which nobody else may use
        return (self.net(x + 0.1 * noise) - x.flip(-1)).square().mean() * (1000 if int(number) in self.spikes else 1)


def split(named, cls=SOAP, **options):
    return SplitOptimizer(
        named, matrix=lambda p: cls(p, lr=1e-2, **options), other=lambda p: torch.optim.AdamW(p, lr=1e-2)
    )


def batches(count=20):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 8, generator=generator), torch.tensor(number)) for number in range(count)]


class Folder(Logger):
    """A log folder, and what is logged."""

    name = version = log_dir = None

    def __init__(self, folder):
        super().__init__()
        self.log_dir = str(folder)
        self.logged = []

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged += [(step, name, value) for name, value in metrics.items()]


def fit(tmp_path, *callbacks, module=None, data=None, ckpt_path=None, logger=None, **options):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=Folder(tmp_path) if logger is None else logger,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "enable_checkpointing": False} | options,
    )
    loader = DataLoader(batches() if data is None else data, batch_size=None)
    trainer.fit(module or Module(), loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def table(folder, name="rotation"):
    with (Path(folder) / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def watch(**options):
    return EigenbasisRotation(**{"every_n_steps": 2, "k": 3, "references": FRAMES, "spike_factor": None} | options)


class Witness(Callback):
    """Copies of what the optimizer holds after every step, and the gradients as they were before clipping."""

    def __init__(self):
        self.factors, self.norms = {}, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weights = [pl_module.net.first.weight, pl_module.net.second.weight]
        self.norms.append(math.sqrt(sum(float(weight.grad.square().sum()) for weight in weights)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name in SHAPES:
            state = trainer.optimizers[0].state.get(pl_module.net.get_parameter(name))
            for side in "LR" if state else "":
                pair = state[side].double().clone(), state[f"Q_{side}"].double().clone()
                self.factors[trainer.global_step, name, side] = pair


def by_hand(now, reference, k):
    """Top-1 and top-k angle, change, shape change and eigenvalues, each by another formula than the library's."""
    (A, Q), (B, R) = now, reference
    a, b = (Q.T @ A @ Q).diagonal(), (R.T @ B @ R).diagonal()
    Q, R = Q[:, a.argsort(descending=True)], R[:, b.argsort(descending=True)]
    q, r = Q[:, 0] / Q[:, 0].norm(), R[:, 0] / R[:, 0].norm()
    top1 = math.degrees(2 * math.asin(min(float((q - r).norm()), float((q + r).norm())) / 2))
    projectors = [basis[:, :k] @ torch.linalg.pinv(basis[:, :k]) for basis in (Q, R)]
    topk = math.degrees(math.asin(min(1.0, float(torch.linalg.matrix_norm(projectors[0] - projectors[1], 2)))))
    change = float((A - B).norm() / B.norm())
    cosine = float((A * B).sum() / A.norm() / B.norm())
    return top1, topk, change, math.sqrt(max(0.0, 1 - cosine**2)), a.sort(descending=True).values


def test_every_figure_is_that_of_copies_taken_step_by_step(tmp_path):
    witness, tested = Witness(), watch(spike_steps=[SPIKE], replica_precision="highest")
    fit(tmp_path, tested, witness)
    rows = table(tmp_path)
    frozen = tested.state_dict()["references"]
    assert [frozen[reference]["step"] for reference in ("pre_spike", "post_spike")] == [SPIKE - 1, SPIKE]
    ahead = {"previous": 1, "lag:3": 3}
    expected = {
        (step, name, side, reference)
        for step in range(2, 21, 2)
        for name in SHAPES
        for side in "LR"
        for reference in FRAMES
        if (reference in ahead and step > ahead[reference]) or (reference not in ahead and step >= SPIKE)
    }
    assert {(int(row["step"]), row["parameter"], row["side"], row["reference"]) for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        step, side = int(row["step"]), (row["parameter"], row["side"])
        earlier = {**{f: step - lag for f, lag in ahead.items()}, "pre_spike": SPIKE - 1, "post_spike": SPIKE}
        now, reference = witness.factors[step, *side], witness.factors[earlier[row["reference"]], *side]
        top1, topk, change, shape_change, values = by_hand(now, reference, 3)
        assert float(row["top1_deg"]) == pytest.approx(top1, rel=1e-4, abs=1e-5)
        assert float(row["topk_deg"]) == pytest.approx(topk, rel=1e-4, abs=1e-5)
        assert float(row["change"]) == pytest.approx(change, rel=1e-5, abs=1e-9)
        assert float(row["shape_change"]) == pytest.approx(shape_change, rel=1e-4, abs=1e-7)
        assert [float(row["top"]), float(row["second"])] == pytest.approx(values[:2].tolist(), rel=1e-5)
        angle, shape = float(row["topk_deg"]), float(row["shape_change"])
        assert row["verdict"] == (
            "stable" if angle <= 10 else "gauge" if max(shape, float(row["distance"])) <= 0.05 else "diverged"
        )
    assert max(float(row["topk_deg"]) for row in rows if row["reference"] == "pre_spike") > 5  # something did turn
    spectrum = table(tmp_path, "spectrum")
    assert {(row["side"], row["rank"]) for row in spectrum if row["parameter"] == "first.weight"} == {
        *(("L", rank) for rank in ("1", "2", "5", "10")),
        *(("R", rank) for rank in ("1", "2", "5")),
    }
    for row in spectrum:
        A, Q = witness.factors[int(row["step"]), row["parameter"], row["side"]]
        values = (Q.T @ A @ Q).diagonal().sort(descending=True).values
        assert float(row["value"]) == pytest.approx(float(values[int(row["rank"]) - 1]), rel=1e-4, abs=1e-9)
    replica = table(tmp_path, "replica")
    assert len(replica) == 10 * 2 * 2
    assert {row["relative_divergence"] for row in replica} == {"0"}  # at the same precision not a bit differs


def test_logged_tags_figures_and_texts(tmp_path, capsys):
    board = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, watch(spike_steps=[SPIKE], parameters=["first.*"]), logger=board)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()
    rows = {(row["step"], row["parameter"], row["side"], row["reference"]): row for row in table(tmp_path)}
    for figure in ("top1_deg", "topk_deg", "distance", "change", "shape_change"):
        logged = events.Scalars(f"rotation/first.weight/L/lag_3/{figure}")
        assert [event.step for event in logged] == list(range(4, 21, 2))
        for event in logged:
            row = rows[str(event.step), "first.weight", "L", "lag:3"]
            assert event.value == pytest.approx(float(row[figure]), rel=1e-5)
    gap = {event.step: event.value for event in events.Scalars("rotation/first.weight/R/gap")}
    row = rows["20", "first.weight", "R", "previous"]
    assert gap[20] == pytest.approx(float(row["top"]) / float(row["second"]), rel=1e-5)
    for figure in ("angles", "eigenvalues", "overlap"):
        assert [event.step for event in events.Images(f"rotation/first.weight/{figure}")] == [20]
    (card,) = events.Tensors("rotation/verdicts/text_summary")
    text = card.tensor_proto.string_val[0].decode()
    counted = [line.split("|")[1:6] for line in text.splitlines() if line.startswith("| first.weight | pre_spike")]
    verdicts = [
        row["verdict"] for row in rows.values() if (row["parameter"], row["reference"]) == ("first.weight", "pre_spike")
    ]
    assert [int(count) for count in counted[0][2:]] == [verdicts.count(v) for v in ("stable", "gauge", "diverged")]
    out = capsys.readouterr().out
    assert f"spike at step {SPIKE}: gradient norm" in out
    assert out.count("EigenbasisRotation, step 20, verdicts on 2 factors: previous ") == 1


def test_figures_come_after_so_many_epochs_and_at_the_end(tmp_path):
    board = TensorBoardLogger(tmp_path, name="", version="")
    tested = watch(parameters=["first.*"], draw_every_n_epochs=2)
    fit(tmp_path, tested, logger=board, data=batches(2), max_epochs=3)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("rotation/first.weight/angles")] == [4, 6]


def test_spikes_are_found_before_clipping_and_only_once(tmp_path, capsys):
    witness, tested = Witness(), watch(spike_factor=10.0)
    module = Module(spikes=(4, 13, 14, 18))  # too early to tell; a jump, and its second step; another
    fit(tmp_path, tested, witness, module=module, gradient_clip_val=0.01)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("spike")]
    assert [line.split(":")[0] for line in lines] == ["spike at step 14", "spike at step 19"]
    norm, usual = witness.norms[13], median(witness.norms[:13])
    assert lines[0] == f"spike at step 14: gradient norm {norm:.4g}, {norm / usual:.3g} × the running median"
    rows = {(int(row["step"]), row["reference"]): row for row in table(tmp_path) if row["parameter"] == "first.weight"}
    assert (12, "pre_spike") not in rows
    now = witness.factors[20, "first.weight", "R"]
    assert float(rows[20, "pre_spike"]["topk_deg"]) == pytest.approx(
        by_hand(now, witness.factors[18, "first.weight", "R"], 3)[1], rel=1e-4, abs=2e-4
    )
    assert float(rows[20, "post_spike"]["topk_deg"]) == pytest.approx(
        by_hand(now, witness.factors[19, "first.weight", "R"], 3)[1], rel=1e-4, abs=2e-4
    )


def test_steps_are_those_of_the_optimizer_with_accumulated_gradients(tmp_path):
    witness = Witness()
    fit(tmp_path, watch(replica_precision="highest"), witness, accumulate_grad_batches=3, max_epochs=2)
    rows = [row for row in table(tmp_path) if row["reference"] == "previous"]
    assert sorted({int(row["step"]) for row in rows}) == [2, 4, 6, 8, 10, 12, 14]
    for row in rows:
        step, side = int(row["step"]), (row["parameter"], row["side"])
        change = by_hand(witness.factors[step, *side], witness.factors[step - 1, *side], 3)[2]
        assert float(row["change"]) == pytest.approx(change, rel=1e-5)
        assert change > 0
    assert {row["relative_divergence"] for row in table(tmp_path, "replica")} == {"0"}


def states(trainer):
    """Everything that training leaves behind."""
    found = {f"weight {name}": value for name, value in trainer.lightning_module.state_dict().items()}
    for number, state in trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"{number} {name}": torch.as_tensor(value) for name, value in state.items()}
    return {**found, "random": torch.get_rng_state()}


@pytest.mark.parametrize("optimizer", [split, lambda named: REKLS(n for n in named if n[1].ndim == 2)])
def test_training_is_the_same_with_and_without(tmp_path, optimizer):
    plain = states(fit(tmp_path / "without", module=Module(optimizer)))
    options = {"spike_steps": [3], "spike_factor": 10.0, "every_n_steps": 1}
    tested = watch(**options, replica_precision="high", emulate=True)
    watched = states(fit(tmp_path / "with", tested, module=Module(optimizer)))
    assert plain.keys() == watched.keys()
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name
    rows = table(tmp_path / "with", "replica")
    assert len(rows) == 20 * 2 * 2
    assert all(float(row["relative_divergence"]) > 0 for row in rows)  # TF32 keeps 10 bits: some product differs


class BuiltOnSOAP(SOAP):
    """Its step calls another class's, so that torch runs step hooks twice."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_replica_steps_once_though_hooks_run_twice(tmp_path):
    calls = []

    def counted(named):
        made = split(named, BuiltOnSOAP)
        made.matrix.register_step_post_hook(lambda *args: calls.append(args))
        return made

    split(list(Net().named_parameters()))  # from now on SOAP's own step runs hooks
    fit(tmp_path, watch(replica_precision="highest"), module=Module(counted))
    assert len(calls) == 2 * 20
    assert {row["relative_divergence"] for row in table(tmp_path, "replica")} == {"0"}


def test_an_emulated_replica_is_the_optimizer_that_emulates(tmp_path):
    """The live factors of a run at high are those of the replica of a run at highest, as gradients are the same."""

    class Fixed(Module):
        def training_step(self, batch, batch_idx):
            x, number = batch
            weights = (self.net.first.weight, self.net.second.weight)
            return sum(
                (w * w.new_tensor(range(96)).reshape(w.shape).sin().add(x.mean() * number)).sum() for w in weights
            )

    at_high, shadowed = Witness(), watch(every_n_steps=1, replica_precision="high", emulate=True)
    high = {"fp32_matmul_prec": "high", "qr_fp32_matmul_prec": "high", "emulate_tf32": True}
    fit(tmp_path / "high", at_high, module=Fixed(lambda named: split(named, REKLS, **high)))
    at_highest = Witness()
    fit(tmp_path / "highest", shadowed, at_highest, module=Fixed(lambda named: split(named, REKLS)))
    for row in table(tmp_path / "highest", "replica"):
        key = (int(row["step"]), row["parameter"], row["side"])
        change = by_hand(at_high.factors[key], at_highest.factors[key], 3)[2]
        assert float(row["relative_divergence"]) == pytest.approx(change, rel=1e-5)


class Replayed(Module):
    """A batch an epoch, the one of the step: as if epochs had 20 batches and could be left in the middle."""

    def training_step(self, batch, batch_idx):
        step = self.global_step
        torch.manual_seed(step)  # what saves random states is another callback's work
        return super().training_step(batches()[step], batch_idx)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.parametrize("stop", [13, 14, 15])  # just before the spike, at it, between two measurements
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path, stop):
    options = {"spike_steps": [SPIKE], "spike_factor": 10.0, "replica_precision": "high", "emulate": True}
    whole, part = tmp_path / "whole", tmp_path / "part"

    def run(folder, epochs, ckpt_path=None):
        saving = ModelCheckpoint(folder, every_n_epochs=stop, save_top_k=-1, filename="{step}")
        tested, how = watch(**options), {"enable_checkpointing": True, "max_epochs": epochs}
        fit(folder, tested, saving, module=Replayed(), data=batches()[:1], ckpt_path=ckpt_path, **how)
        return tested

    uninterrupted = run(whole, 20)
    run(part, 17)  # goes on past the checkpoint
    with (part / "rotation.csv").open("a") as file:
        file.write("18,first.weight,L,prev")  # cut off in the middle of a row
    assert any(row["step"] == "16" for row in table(part))
    resumed = run(part, 20, part / f"step={stop}.ckpt")
    for name in ("rotation", "spectrum", "replica"):
        assert table(part, name) == table(whole, name), name
    assert str(resumed.state_dict()) == str(uninterrupted.state_dict())


def test_the_state_has_only_what_later_steps_need(tmp_path):
    tested = watch(references=["lag:3"], every_n_steps=5)
    fit(tmp_path, tested, max_steps=12)
    kept = tested.state_dict()["references"]
    assert [snapshot["step"] for snapshot in kept["lagged"]] == [12]  # for step 15; those of 2 and 7 are gone
    assert kept["pre_spike"] is kept["post_spike"] is None


def test_without_such_an_optimizer_it_says_so_once_and_does_nothing(tmp_path):
    with pytest.warns(UserWarning, match=r"does nothing: AdamW keeps no eigenbases \(Q_L\)") as caught:
        fit(tmp_path, watch(), module=Module(lambda named: torch.optim.AdamW(p for _, p in named)))
    assert len([warning for warning in caught if "EigenbasisRotation" in str(warning.message)]) == 1
    assert not (tmp_path / "rotation.csv").exists()


def test_without_a_logger_it_still_says_its_verdict(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, watch(), logger=False)
    assert "EigenbasisRotation, step 20, verdicts on 4 factors" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.csv"))


def test_every_logger_gets_the_numbers(tmp_path):
    witness, loggers = Witness(), [Folder(tmp_path), Folder(tmp_path / "other")]
    fit(tmp_path, watch(spike_steps=[3]), witness, logger=loggers, log_every_n_steps=7)
    norms = [(step, value) for step, name, value in loggers[0].logged if name == "rotation/grad_norm"]
    steps = [2, 3, *range(4, 21, 2)]
    assert norms == [(step, pytest.approx(witness.norms[step - 1], rel=1e-5)) for step in steps]
    assert len([tag for _, tag, _ in loggers[0].logged if tag == "rotation/first.weight/L/previous/topk_deg"]) == 10
    assert loggers[0].logged == loggers[1].logged
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parameters": ["first.wieght"]},
            r"parameters: 'first.wieght' matches no parameter; there are first\.weight,",
        ),
        ({"parameters": ["net.first.weight", "*.bias"]}, r"'\*\.bias' is first.bias, second.bias, .* by AdamW"),
        ({"k": 9}, r"k must be at most 8, the smaller dimension of first.weight \(12, 8\), got 9"),
        ({"spike_steps": [3, 21]}, r"spike_steps must be in the run, which has 20 steps, got 21"),
        ({"replica_precision": "high"}, r"replica_precision 'high' .* emulate"),
    ],
)
def test_what_does_not_fit_the_run_is_named_before_the_first_step(tmp_path, options, message):
    module = Module()
    before = module.net.first.weight.clone()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, watch(**options), module=module)
    assert torch.equal(module.net.first.weight, before)


def test_a_weight_decay_that_changes_gradients_has_no_replica(tmp_path):
    module = Module(lambda named: split(named, LibrarySOAP, weight_decay_method="l2"))
    with pytest.raises(ValueError, match=r"replica_precision needs a weight_decay_method .* SOAP has 'l2'"):
        fit(tmp_path, watch(replica_precision="highest"), module=module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest": 0}, "largest must be at least 1, got 0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"draw_every_n_epochs": 0}, "draw_every_n_epochs must be at least 1, got 0"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"references": ["lag:0"]}, "references must be 'previous', 'lag:n'.*got 'lag:0'"),
        ({"references": ["before"]}, "references must be 'previous', 'lag:n'.*got 'before'"),
        ({"references": []}, "references must be at least one"),
        ({"references": ["previous", "previous"]}, "references must be at least one, and each once"),
        ({"spike_factor": 1.0}, "spike_factor must be above 1 or None, got 1.0"),
        ({"spike_steps": [0]}, "spike_steps must be at least 1"),
        ({"replica_precision": "medium"}, "replica_precision must be 'highest', 'high' or None, got 'medium'"),
        ({"emulate": True}, "emulate needs replica_precision 'high', got None"),
        ({"emulate": True, "replica_precision": "highest"}, "emulate needs replica_precision 'high', got 'highest'"),
        ({"parameters": []}, "parameters must be a list of patterns or None"),
        ({"parameters": "first.weight"}, "parameters must be a list of patterns or None"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        watch(**options)


@pytest.mark.parametrize(
    ("settings", "options", "says"),
    [
        ({}, {"replica_precision": "highest"}, True),
        ({}, {"replica_precision": "high", "emulate": True}, False),
        ({"fp32_matmul_prec": "high"}, {"replica_precision": "highest"}, not torch.cuda.is_available()),
        ({"fp32_matmul_prec": "high", "emulate_tf32": True}, {"replica_precision": "highest"}, False),
    ],
)
def test_a_replica_that_cannot_differ_is_said_to(settings, options, says):
    weight = nn.Parameter(torch.zeros(4, 3))
    replica = ReferencePrecisionReplica(
        REKLS([weight], **settings), [weight], options["replica_precision"], options.get("emulate", False)
    )
    assert replica.differs != says


def test_a_replica_at_the_optimizers_precision_warns(tmp_path):
    with pytest.warns(UserWarning, match="replica_precision 'highest' is that of the optimizer"):
        fit(tmp_path, watch(replica_precision="highest"), max_epochs=1)


def test_patterns_choose_and_states_are_told_apart(tmp_path):
    one, other = watch(parameters=["net.first.*"]), watch(parameters=["second.*"], every_n_steps=5)
    assert len({one.state_key, other.state_key, watch().state_key, watch(largest=1).state_key}) == 4
    fit(tmp_path, one, other)
    found = {
        row["parameter"]: {int(r["step"]) for r in table(tmp_path) if r["parameter"] == row["parameter"]}
        for row in table(tmp_path)
    }
    assert found == {"first.weight": set(range(2, 21, 2)), "second.weight": {5, 10, 15, 20}}


class Manual(Module):
    """Two optimizers by hand, the second steps every other batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.second.parameters(), lr=0.01), SOAP([self.net.first.weight], lr=0.01)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


def test_of_several_optimizers_it_counts_the_steps_of_its_own(tmp_path):
    fit(tmp_path, watch(every_n_steps=3), module=Manual())
    rows = [row for row in table(tmp_path) if row["reference"] == "previous"]
    assert [row["step"] for row in rows if row["side"] == "L"] == ["3", "6", "9"]
    assert {row["parameter"] for row in rows} == {"first.weight"}
    assert all(float(row["change"]) > 0 for row in rows)


def test_a_step_that_a_gradient_scaler_skips_counts_and_changes_nothing(tmp_path):
    witness = Witness()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=1000)
    half = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    overflow = [(batch * (1e6 if int(number) == 11 else 1), number) for batch, number in batches()]
    options = {"every_n_steps": 1, "spike_factor": 10.0, "replica_precision": "highest"}
    fit(tmp_path, watch(**options), witness, module=Module(spikes=()), data=overflow, plugins=[half])
    assert not math.isfinite(witness.norms[11])
    changes = {int(row["step"]): float(row["change"]) for row in table(tmp_path) if row["reference"] == "previous"}
    assert [step for step, change in changes.items() if change == 0] == [12]
    assert list(changes) == list(range(2, 21))
    assert {row["relative_divergence"] for row in table(tmp_path, "replica")} == {"0"}
    assert not any(row["reference"].endswith("_spike") for row in table(tmp_path))
