import csv
import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eigenscope.callbacks import KVCacheCompression
from eigenscope.kv import KVCodec, LowRankInt8, UniformInt
from eigenscope.lightning_modules import ImageClassificationModule
from eigenscope.nn import DeiT

DEFAULTS = ["exact", "int8", "int4", "low_rank", "transform", "score_aware"]
NETWORK = {"top1_agreement", "accuracy_difference", "logit_kl"}
MEASURES = {"ratio", "bits_keys", "bits_values", "error_keys", "error_values", "attention_kl"}
LAYERS = ["net.blocks.0.attention", "net.blocks.1.attention"]
CHECK = {"every_n_epochs": 1}


def loader(count=24):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 5
    return DataLoader(TensorDataset(images, labels), batch_size=8)


class Classifier(ImageClassificationModule):
    """A small DeiT."""

    def __init__(self, **options):
        net = DeiT(16, num_classes=5, width=16, depth=2, num_heads=2, dropout=0.1)
        super().__init__(net, partial(torch.optim.SGD, lr=0.1), **options)


class Keeper(Callback):
    """Keeps what each validation logged, and a random number drawn after it."""

    def __init__(self):
        self.kept = []

    def on_validation_end(self, trainer, pl_module):
        self.kept.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.kept.append(torch.rand(2).tolist())


def trainer(tmp_path, *callbacks, **options):
    return Trainer(
        **{
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "logger": TensorBoardLogger(tmp_path, name="", version=""),
            "callbacks": list(callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
            "max_epochs": 1,
        }
        | options
    )


def fit(tmp_path, *callbacks, module=Classifier, **options):
    seed_everything(0, verbose=False)
    model = module()
    run = trainer(tmp_path, *callbacks, **options)
    run.fit(model, loader(), loader())
    return run, model


def board(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(folder):
    events = board(folder)
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def kv_tags(folder, prefix="kv/"):
    return {tag: values for tag, values in scalars(folder).items() if tag.startswith(prefix)}


def by_layer(folder, name="kv"):
    """The rows of the CSV file, by codec and layer."""
    with (folder / f"{name}.csv").open() as file:
        return {(row.pop("codec"), row.pop("layer")): row for row in csv.DictReader(file)}


def untouched(model):
    return all(
        not getattr(m, "hooks", ()) and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules()
    )


class Drawing(Classifier):
    """Uses up random numbers in every forward pass."""

    def forward(self, images):
        return super().forward(images + 0.1 * torch.rand(images.shape))


def test_a_fit_is_the_same_with_and_without(tmp_path):
    runs = []
    for name, extra in (("plain", []), ("checked", [KVCacheCompression(samples=3, **CHECK)])):
        keeper = Keeper()
        _, model = fit(tmp_path / name, *extra, keeper, module=Drawing, max_epochs=2)
        runs.append((model.state_dict(), keeper.kept, scalars(tmp_path / name)))
        assert untouched(model)
    (weights, kept, logged), (weights_checked, kept_checked, logged_checked) = runs
    assert all(weights[name].equal(tensor) for name, tensor in weights_checked.items())
    assert kept == kept_checked
    assert {tag: logged_checked[tag] for tag in logged} == logged
    assert {tag.split("/")[0] for tag in set(logged_checked) - set(logged)} == {"kv"}


def test_what_a_fit_leaves_behind(tmp_path, capsys):
    fit(tmp_path, KVCacheCompression(every_n_epochs=2), max_epochs=5)
    tags = kv_tags(tmp_path)
    assert set(tags) == {f"kv/{codec}/{measure}" for codec in DEFAULTS for measure in MEASURES | NETWORK}
    assert all(list(steps) == [6, 12, 15] for steps in tags.values())  # the 2nd, the 4th and the last epoch
    exact = {tag.rpartition("/")[2]: steps[15] for tag, steps in tags.items() if tag.startswith("kv/exact/")}
    assert (exact["ratio"], exact["bits_keys"], exact["bits_values"]) == (0.5, 32, 32)
    assert (exact["top1_agreement"], exact["accuracy_difference"], exact["logit_kl"]) == (1, 0, 0)
    assert 0.5 < tags["kv/int8/ratio"][15] < tags["kv/int4/ratio"][15] < 4
    assert 0 < tags["kv/int8/error_keys"][15] < tags["kv/int4/error_keys"][15] < 0.2
    assert 0 < tags["kv/int8/logit_kl"][15] < tags["kv/low_rank/logit_kl"][15]
    rows = by_layer(tmp_path)
    assert list(rows) == [(codec, layer) for codec in DEFAULTS for layer in ("all", *LAYERS)]
    for codec in DEFAULTS:
        whole = rows[codec, "all"]
        for measure in MEASURES | NETWORK:
            assert float(whole[measure]) == pytest.approx(tags[f"kv/{codec}/{measure}"][15], rel=1e-6)
        assert (
            -1 <= float(whole["accuracy_low"]) <= float(whole["accuracy_difference"]) <= float(whole["accuracy_high"])
        )
        assert float(whole["accuracy_low"]) < float(whole["accuracy_high"]) <= 1
        assert 16 / float(whole["ratio"]) == pytest.approx(float(whole["bits_per_element"]))
        assert {name for name, value in rows[codec, LAYERS[0]].items() if value == ""} == {
            *NETWORK,
            "accuracy_low",
            "accuracy_high",
        }
    for row in ("all", *LAYERS):
        for role in ("keys", "values"):
            assert 0 < float(rows["transform", row][f"bound_{role}"]) < float(rows["transform", row][f"error_{role}"])
    events = board(tmp_path)
    assert set(events.Tags()["images"]) == {"kv/rate_distortion", "kv/layers"}
    assert [event.step for event in events.Images("kv/layers")] == [15]
    card = events.Tensors("kv/table/text_summary")[0].tensor_proto.string_val[0].decode()
    printed = capsys.readouterr().out
    assert printed.count("Compressed keys and values, 2 attention layers, step 15") == 1
    for codec in DEFAULTS:
        assert f"| {codec} |" in card
        assert f"\n{codec} " in printed
    assert "in 16 bits / bytes stored" in card
    assert "95 % interval, 8 predictions" in printed
    row = next(line for line in printed.splitlines() if line.startswith("exact "))
    low, high = re.search(r"\+0\.0% \(-([\d.]+)% … \+([\d.]+)%\)", row).groups()
    assert low == high == "22.6"  # t(0.975, 9) / 10: nothing changed in 8 predictions


def test_validation_and_test_alone(tmp_path):
    seed_everything(0, verbose=False)
    run = trainer(tmp_path, KVCacheCompression({"svd": LowRankInt8(2)}, every_n_epochs=7))
    model = Classifier()
    run.validate(model, loader(), verbose=False)
    run.test(model, loader(), verbose=False)
    names = {tag.split("/")[1] for tag in kv_tags(tmp_path)}
    assert names == {"exact", "int8", "int4", "svd"}
    assert set(board(tmp_path).Tags()["images"]) == {
        f"{k}/{f}" for k in ("kv", "kv_test") for f in ("layers", "rate_distortion")
    }
    assert by_layer(tmp_path, "kv_test") == by_layer(tmp_path)
    tests = {tag.replace("kv_test/", "kv/"): steps for tag, steps in kv_tags(tmp_path, "kv_test/").items()}
    assert tests == kv_tags(tmp_path)


def test_layers_batches_and_samples(tmp_path):
    passes = []

    class Counting(Classifier):
        def forward(self, images):
            passes.append(len(images))
            return super().forward(images)

    check = KVCacheCompression({"svd": LowRankInt8(2)}, layers=["*blocks.1.*"], batches=3, samples=2)
    trainer(tmp_path, check).validate(Counting(), loader(), verbose=False)
    assert passes == [8, 2] + [8, 2, 2, 2, 2, 2] * 2  # first calibrated; then exact and four codecs, twice
    assert {layer for _, layer in by_layer(tmp_path)} == {"all", LAYERS[1]}
    passes.clear()
    trainer(tmp_path / "one", KVCacheCompression({}, batches=1, samples=None)).validate(
        Counting(), loader(), verbose=False
    )
    assert passes == [8, 4, 4, 4, 4, 4, 8, 8]  # one batch in halves; later ones only validated


def test_ratios_are_to_16_bits_in_any_precision(tmp_path):
    codecs = {"svd": KVCodec(UniformInt(8), LowRankInt8(2))}
    for precision, exact in (("32-true", 32), ("bf16-mixed", 16)):
        fit(tmp_path / precision, KVCacheCompression(codecs, **CHECK), precision=precision)
        tags = kv_tags(tmp_path / precision)
        assert (tags["kv/exact/logit_kl"], tags["kv/exact/top1_agreement"]) == ({3: 0}, {3: 1})
        assert (tags["kv/exact/bits_keys"][3], tags["kv/exact/ratio"][3]) == (exact, 16 / exact)
        for codec in ("int8", "svd"):  # of as many keys as values
            bits = (tags[f"kv/{codec}/bits_keys"][3] + tags[f"kv/{codec}/bits_values"][3]) / 2
            assert tags[f"kv/{codec}/ratio"][3] == pytest.approx(16 / bits)


def test_a_network_of_timm(tmp_path):
    class Timm(ImageClassificationModule):
        def __init__(self):
            sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 12, "num_heads": 2, "num_classes": 5}
            super().__init__(VisionTransformer(**sizes, qk_norm=True), partial(torch.optim.SGD, lr=0.1))

    _, model = fit(tmp_path, KVCacheCompression(**CHECK), module=Timm)
    tags = kv_tags(tmp_path)
    assert (tags["kv/exact/logit_kl"], tags["kv/exact/top1_agreement"]) == ({3: 0}, {3: 1})  # to the bit
    assert tags["kv/int4/logit_kl"][3] > tags["kv/int8/logit_kl"][3] > 0
    assert tags["kv/int4/attention_kl"][3] > 0
    kinds = board(tmp_path).Tags()
    written = [tag for kind in ("scalars", "images", "tensors") for tag in kinds[kind] if tag.startswith("kv")]
    assert len(written) <= 60
    assert len(by_layer(tmp_path)) == 6 * 13
    assert untouched(model)


def test_a_module_with_other_attention_and_no_labels(tmp_path):
    class Encoder(LightningModule):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(48, 2, batch_first=True)
            self.headless = nn.MultiheadAttention(48, 2, add_zero_attn=True, batch_first=True)
            self.double()

        def forward(self, images):
            x = images.double().flatten(2)[..., :48]
            return self.attention(x, x, x)[0] + self.headless(x, x, x)[0]

        def validation_step(self, batch, batch_idx):
            self(batch[0])

    with pytest.warns(UserWarning, match="KVCacheCompression") as said:
        trainer(tmp_path, KVCacheCompression()).validate(Encoder(), loader(), verbose=False)
    messages = [str(w.message) for w in said if "KVCacheCompression" in str(w.message)]
    assert len(messages) == 2  # each once
    assert "cannot read 'headless' and leaves it out: it adds tokens of its own" in messages[0]
    assert "compares attention alone" in messages[1]
    tags = kv_tags(tmp_path)
    assert set(tags) == {f"kv/{c}/{m}" for c in DEFAULTS for m in MEASURES}
    rows = by_layer(tmp_path)
    assert rows["int4", "headless"]["error_keys"] == "" != rows["int4", "attention"]["error_keys"]
    assert tags["kv/exact/bits_keys"] == {0: 64}
    assert all(value == value for steps in tags.values() for value in steps.values())


def test_keys_that_are_not_finite_are_a_warning(tmp_path):
    class Broken(Classifier):
        def on_validation_start(self):
            with torch.no_grad():
                self.net.blocks[1].attention.qkv.weight.fill_(torch.nan)

    run = trainer(tmp_path, KVCacheCompression({"svd": LowRankInt8(2)}))
    with pytest.warns(UserWarning, match=r"cannot read 'net.blocks.1.attention' and leaves it out: .* not finite"):
        run.validate(Broken(), loader(), verbose=False)
    rows = by_layer(tmp_path)
    assert [rows["svd", layer]["ratio"] != "" for layer in LAYERS] == [True, False]


def test_one_sample_is_a_warning(tmp_path):
    data = DataLoader(loader().dataset, batch_size=1)
    run = trainer(tmp_path, KVCacheCompression(batches=1))
    with pytest.warns(UserWarning, match="one batch of one sample cannot calibrate and be measured"):
        run.validate(Classifier(), data, verbose=False)
    assert kv_tags(tmp_path) == {}


def test_without_sanity_check_the_first_validation_is_strict(tmp_path):
    run = trainer(tmp_path, KVCacheCompression({"svd": LowRankInt8(9)}))
    with pytest.raises(ValueError, match=r"codecs\['svd'\], on .*: rank must be at most"):
        run.validate(Classifier(), loader(), verbose=False)


@pytest.mark.parametrize("options", [{"max_epochs": 9}, {"num_sanity_val_steps": 1, "limit_val_batches": 1}])
def test_a_rank_above_the_head_width_is_an_error_before_training(tmp_path, options):
    class Untrained(Classifier):
        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    message = (
        r"codecs\['svd'\], on 'net.blocks.0.attention', 'net.blocks.1.attention': rank must be at most min\(T, d\)"
    )
    with pytest.raises(ValueError, match=f"{message} of a block, 8, got 9"):
        fit(tmp_path, KVCacheCompression({"svd": LowRankInt8(9)}), module=Untrained, **options)


def test_the_sanity_check_logs_nothing(tmp_path):
    with pytest.warns(UserWarning, match="none of the 0 validations"):
        fit(tmp_path, KVCacheCompression(), limit_train_batches=1, limit_val_batches=0)
    assert kv_tags(tmp_path) == {}


def test_default_codecs_that_few_tokens_do_not_pay_for_are_left_out(tmp_path):
    def coarse():  # 5 tokens an image
        net = DeiT(16, num_classes=5, patch_size=8, width=16, depth=2, num_heads=2)
        return ImageClassificationModule(net, partial(torch.optim.SGD, lr=0.1))

    with pytest.warns(UserWarning, match="KVCacheCompression") as said:
        run, _ = fit(tmp_path, KVCacheCompression(samples=1, **CHECK), module=coarse, max_epochs=2)
    messages = sorted(str(w.message) for w in said if "KVCacheCompression" in str(w.message))
    assert len(messages) == 2  # each once, though the sanity check and both epochs leave them out
    for name, message in zip(("score_aware", "transform"), messages, strict=True):
        assert f"leaves out the default codec '{name}'" in message
        assert "bits_per_element must be at least" in message
    assert run.current_epoch == 2
    tags = kv_tags(tmp_path)
    assert {tag.split("/")[1] for tag in tags} == {"exact", "int8", "int4", "low_rank"}
    assert list(tags["kv/low_rank/logit_kl"]) == [3, 6]


@pytest.mark.parametrize(
    ("options", "every", "steps"),
    [
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 5, [6]),
        ({"max_epochs": -1, "max_steps": 7}, 5, [6]),
        ({"max_epochs": 7, "check_val_every_n_epoch": 2}, 3, [12, 18]),  # epoch 4 is the first validated from 3 on
        ({"max_epochs": 3, "val_check_interval": 2, "check_val_every_n_epoch": None}, 2, [4, 8]),
        ({"max_epochs": 4, "val_check_interval": 1}, 2, [4, 10, 11, 12]),
    ],
)
def test_a_fit_ends_with_figures(tmp_path, capsys, options, every, steps):
    fit(tmp_path, KVCacheCompression({}, every_n_epochs=every), num_sanity_val_steps=0, **options)
    assert list(kv_tags(tmp_path)["kv/int4/ratio"]) == steps
    assert f"attention layers, step {steps[-1]}\n" in capsys.readouterr().out


def test_a_fit_that_was_not_measured_says_so(tmp_path, capsys):
    class Stopping(Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    with pytest.warns(UserWarning, match="measured nothing: none of the 2 validations .* by every_n_epochs=5"):
        fit(tmp_path, KVCacheCompression({}), Stopping(), max_epochs=9)
    assert kv_tags(tmp_path) == {}
    assert "Compressed" not in capsys.readouterr().out


def test_a_resumed_fit_counts_from_where_it_was(tmp_path):
    run, _ = fit(tmp_path / "first", max_epochs=4)
    run.save_checkpoint(tmp_path / "at_4.ckpt")
    run = trainer(tmp_path, KVCacheCompression({}, every_n_epochs=3), max_epochs=7)
    run.fit(Classifier(), loader(), loader(), ckpt_path=tmp_path / "at_4.ckpt")
    assert list(kv_tags(tmp_path)["kv/int4/ratio"]) == [18, 21]


def test_logits_that_become_nan_are_seen(tmp_path, capsys):
    class Breaking(Classifier):
        def forward(self, images):
            logits = super().forward(images)
            return logits if images.shape[0] == 8 else logits * torch.nan

    trainer(tmp_path, KVCacheCompression({}, samples=4)).validate(Breaking(), loader(), verbose=False)
    tags = kv_tags(tmp_path)
    assert tags["kv/exact/top1_agreement"] == {0: 0}
    assert tags["kv/exact/logit_kl"][0] != tags["kv/exact/logit_kl"][0]
    assert "nan" in capsys.readouterr().out


def test_a_codec_that_fails_later_ends_no_run(tmp_path):
    class Moody(UniformInt):
        calls = 0

        def encode(self, X, fitted):
            Moody.calls += 1
            if Moody.calls > 4:  # the sanity check and the first epoch pass
                raise ValueError("not today")
            return super().encode(X, fitted)

    with pytest.warns(UserWarning, match=r"codecs\['moody'\] .* not today") as said:
        run, _ = fit(tmp_path, KVCacheCompression({"moody": Moody(4)}, **CHECK), max_epochs=3)
    assert run.current_epoch == 3
    assert sum("not today" in str(w.message) for w in said) == 1
    tags = kv_tags(tmp_path)
    assert list(tags["kv/moody/ratio"]) == [3]
    assert list(tags["kv/int4/ratio"]) == [3, 6, 9]


def test_an_error_in_the_step_leaves_nothing_attached(tmp_path):
    class Failing(Classifier):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("in the step")
            super().validation_step(batch, batch_idx)

    model = Failing()
    with pytest.raises(RuntimeError, match="in the step"):
        trainer(tmp_path, KVCacheCompression()).validate(model, loader(), verbose=False)
    assert untouched(model)


def test_without_tensorboard_there_are_scalars_and_the_table(tmp_path, capsys):
    run = trainer(tmp_path, KVCacheCompression(), logger=CSVLogger(tmp_path, name="", version=""))
    run.validate(Classifier(), loader(), verbose=False)
    assert "kv/int4/error_keys" in (tmp_path / "metrics.csv").read_text()
    assert "score_aware" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": 0}, "batches must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"layers": "net.*"}, r"layers must be a list of patterns, such as \['net\.\*'\], got the string"),
        ({"codecs": {"x": 3}}, r"codecs\['x'\] must be a Codec or KVCodec, got int"),
        ({"codecs": {"int4": LowRankInt8(1)}}, "codecs: 'int4' must be neither"),
        ({"codecs": {"a/b": LowRankInt8(1)}}, "codecs: 'a/b' must be neither"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        KVCacheCompression(**options)


def test_modules_are_checked(tmp_path):
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"no attention layer matches 'taps'; there are: net\.blocks\.0"):
        KVCacheCompression(layers=["taps"]).setup(run, Classifier(), "fit")
    with pytest.raises(ValueError, match="needs a module with forward, which LightningModule has not"):
        KVCacheCompression().setup(run, LightningModule(), "fit")

    class Without(LightningModule):
        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="Without has no attention layer"):
        KVCacheCompression().setup(run, Without(), "fit")
