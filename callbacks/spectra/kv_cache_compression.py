"""KV-cache compression measured during validation: error, bytes, attention and predictions per codec."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from eigenscope.callbacks._output import print_beside_bar, run_folder, tensorboard_loggers
from eigenscope.callbacks.spectra.kv_report import TAGS, card, charts, csv_lines, figures, printed
from eigenscope.charts import Chart, present
from eigenscope.files import replace_atomically
from eigenscope.kv import Codec, KVCodec
from eigenscope.kv.measuring.attention_context import AttentionLayer
from eigenscope.kv.measuring.attention_layers import attention_layers
from eigenscope.kv.measuring.capture import Captured, capture, eager_inference, replaced
from eigenscope.kv.measuring.evaluation import KVEvaluation, baseline_codecs, default_codecs
from eigenscope.kv.measuring.metric_sums import KVMetricSums, logit_change, paired_change
from eigenscope.kv.measuring.sampled_batch import SampledBatch, spread_batches
from eigenscope.text import abbreviate_names


class KVCacheCompression(Callback):
    """Measures KV-cache compression during validation: compression ratio, errors, attention and predictions.

    Some samples of a first batch calibrate the codecs, some of later batches are measured; with one batch its first
    half calibrates and its second half is measured. They pass through the module's ``forward`` once more, exactly,
    and for each codec with the decoded keys and values of the exact pass in all layers at once. This happens in the
    run's precision and its evaluation mode, uncompiled, outside of validation steps: metrics, weights and random state
    are not touched, and nothing stays attached.

    Logged after validation as ``kv/<codec>/<measure>`` over all layers and ranks, which calibrate and measure each on
    their own samples (``kv_test/`` after a test):

    - ``ratio``, the compression ratio: bytes of keys and values in 16 bits over bytes stored, learned state included;
      of the two apart, the bits per element ``bits_keys`` and ``bits_values``;
    - ``error_keys`` and ``error_values``, relative;
    - ``attention_kl`` (nats) of each layer's attention, on up to four samples of a batch;
    - ``top1_agreement``, ``accuracy_difference`` (decoded minus exact) and ``logit_kl`` (nats), if ``forward`` gives
      logits, or something with ``logits``, and the batch has labels of their shape.

    The table that is printed adds the bound of the errors, the least that a code of Gaussian tokens of the same
    covariance could have at the same bits; ``score_rmse`` and ``output_cosine`` of attention; and of the accuracy
    difference a 95 % interval, paired over samples
    (:func:`~eigenscope.kv.measuring.metric_sums.accuracy_interval`). Of each layer all measures are in ``kv.csv``
    (``kv_test.csv``) in the run's folder.

    A batch is a sequence that begins with the input of ``forward`` and the labels, or a mapping of arguments with
    ``labels`` that are those of the next token, as in transformers. At the end of a fit, a validation or a test the
    latest metrics are printed, and TensorBoard gets the text ``kv/table`` and the figures ``kv/rate_distortion`` and
    ``kv/layers``. ``exact``, ``int8`` and ``int4`` are always among the codecs.

    A measured validation of 2,000 images takes 13–17 % longer with the defaults and a DeiT of 4 layers of width 96 on a
    CPU core (``benchmarks/kv_callback.py``); one in five measured makes 3 % over all. What is added does not grow
    with the number of images: in a small validation it weighs more, and a larger ``every_n_epochs`` lessens it.

    Args:
        codecs: name to a codec for keys and values alike, or to a
            :class:`~eigenscope.kv.KVCodec`; None: :func:`~eigenscope.kv.measuring.evaluation.default_codecs`, without
            those that the calibration tokens are too few for, with a warning.
        layers: shell patterns over the names of attention layers (see
            :func:`~eigenscope.kv.measuring.attention_layers.attention_layers`); None: all.
        batches: of the first validation loader, evenly spread over it; the first calibrates.
        samples: of each of these batches, evenly spread over it; None: all.
        every_n_epochs: measures in the first validation after every so many epochs begin, and in the last one that
            ``max_epochs`` and ``max_steps`` leave, judging by the distance of validations so far; outside a fit,
            always. A fit that ends without, as when it is stopped early, warns.

    Raises:
        ValueError: a number is below 1, a codec is none or has the name of a baseline, ``layers`` is a string; in
            setup, the module has no ``forward``, no attention layer or none of that pattern; in the first validation
            or the sanity check before it, one of ``codecs`` refuses the keys and values that it gets, such as for a
            rank above the head width.
    """

    affects_training = False

    def __init__(
        self,
        codecs: dict[str, Codec | KVCodec] | None = None,
        layers: list[str] | None = None,
        batches: int = 2,
        samples: int | None = 8,
        every_n_epochs: int = 5,
    ) -> None:
        for name, value in (("batches", batches), ("samples", samples), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of patterns, such as [{layers!r}], got the string {layers!r}")
        for name, codec in (codecs or {}).items():
            if not isinstance(codec, Codec | KVCodec):
                raise ValueError(f"codecs[{name!r}] must be a Codec or KVCodec, got {type(codec).__name__}")
            if name in baseline_codecs() or "/" in name:
                raise ValueError(f"codecs: {name!r} must be neither a baseline's name nor have a slash")
        self.codecs = None if codecs is None else {name: KVCodec.of(codec) for name, codec in codecs.items()}
        self.layers = layers
        self.batches = batches
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self._layers: list[AttentionLayer] = []
        self._names: list[str] = []  # of the codecs, in an order that all ranks share
        self._evaluation: KVEvaluation | None = None  # of this validation, once calibrated
        self._latest: KVMetricSums | None = None
        self._step = 0  # at which the latest was measured
        self._previous = (0, 0)  # epoch and step of the validation before, or at which the fit began
        self._validations = 0
        self._logged: set[str] = set()
        self._accepted = False  # whether all codecs have taken this network's keys and values
        self._said: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the layers."""
        if type(pl_module).forward is LightningModule.forward:
            raise ValueError(
                f"KVCacheCompression needs a module with forward, which {type(pl_module).__name__} has not"
            )
        self._layers = attention_layers(pl_module, *(self.layers or ()))
        self._names = [*baseline_codecs(), *(default_codecs(1, 1) if self.codecs is None else self.codecs)]
        self._evaluation = self._latest = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts counting at the fit's first step, which is later if it is resumed."""
        self._previous = (trainer.current_epoch, trainer.global_step)
        self._validations = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discards the measurements of a validation that was interrupted."""
        self._evaluation = None

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Calibrates on this batch, or measures, if it is one of those."""
        if dataloader_idx or not self._is_due(trainer):
            return
        testing = trainer.state.fn == TrainerFn.TESTING
        count = (trainer.num_test_batches if testing else trainer.num_val_batches)[0]
        if batch_idx in spread_batches(count, self.batches):
            alone = count == 1 or self.batches == 1
            with eager_inference(pl_module.device):
                self._take(trainer, pl_module, SampledBatch(batch, self.samples), batch_idx == 0, alone)

    on_test_batch_end = on_validation_batch_end

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds up over ranks and logs."""
        if trainer.sanity_checking or not self._is_due(trainer):
            return
        names = [layer.name for layer in self._layers]
        sums = KVMetricSums(self._names, names) if self._evaluation is None else self._evaluation.sums
        self._evaluation = None
        if trainer.world_size > 1:  # every rank comes here, with sums of one shape, whatever it could measure
            sums.map(lambda x: trainer.strategy.reduce(x.to(pl_module.device), reduce_op="sum").cpu())
        self._latest, self._step = sums, trainer.global_step
        prefix = _prefix(trainer)
        metrics = {
            f"{prefix}/{codec}/{measure}": float(value)
            for measure, values in sums.overall().items()
            if measure in TAGS
            for codec, value, present in zip(self._names, values, sums.present(measure, values), strict=True)
            if present
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self._logged |= metrics.keys()

    on_test_epoch_end = on_validation_epoch_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table, draws the figures and writes the text."""
        if self._latest is None:
            self._say(
                f"KVCacheCompression measured nothing: none of the {self._validations} validations of this fit was due "
                f"by every_n_epochs={self.every_n_epochs} or could be told to be the last"
            )
        self._report(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and draws after a validation outside of a fit."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._report(trainer, pl_module)
        elif not trainer.sanity_checking:
            self._previous = (trainer.current_epoch + 1, trainer.global_step)
            self._validations += 1

    on_test_end = on_validation_end

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Bits and errors of each codec over all layers."""
        return present(charts(self._names), self._logged)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._latest is None or not trainer.is_global_zero:
            return
        title = f"Compressed keys and values, {len(self._layers)} attention layers, step {self._step}"
        print_beside_bar(trainer, pl_module, f"{title}\n{printed(self._latest)}")
        prefix, folder = _prefix(trainer), run_folder(trainer)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with replace_atomically(folder / f"{prefix}.csv") as path:
                path.write_text(csv_lines(self._latest))
        drawn = figures(self._latest) if tensorboard_loggers(trainer) else {}
        for board in tensorboard_loggers(trainer):
            board.experiment.add_text(f"{prefix}/table", card(self._latest, title), self._step)
            for name, figure in drawn.items():
                board.experiment.add_figure(f"{prefix}/{name}", figure, global_step=self._step)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return True
        epoch, step = trainer.current_epoch + 1, trainer.global_step
        previous_epoch, previous_step = self._previous
        if epoch // self.every_n_epochs > previous_epoch // self.every_n_epochs:
            return True
        next_epoch, next_step = epoch + (trainer.check_val_every_n_epoch or 1), 2 * step - previous_step
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        return 0 <= epochs < next_epoch or 0 <= trainer.max_steps < next_step

    def _take(self, trainer: Trainer, pl_module: LightningModule, run: SampledBatch, first: bool, alone: bool) -> None:
        parts = run.halves() if first and alone else (run, run)
        if parts is None:
            self._say("KVCacheCompression measures nothing: one batch of one sample cannot calibrate and be measured")
            return
        calibrating, measured = parts
        if first:
            captured = self._capture(trainer, pl_module, calibrating)[1]
            if not captured:
                return
            tokens, width = (min(seen.keys.shape[dim] for seen in captured.values()) for dim in (-2, -1))
            codecs = baseline_codecs() | (default_codecs(width, tokens) if self.codecs is None else self.codecs)
            self._evaluation = KVEvaluation(codecs, [layer.name for layer in self._layers])
            self._evaluation.fit(captured)
            if trainer.sanity_checking:  # nothing is logged, but what a codec refuses is known before training
                for _ in self._evaluation.measure(captured):
                    pass
            self._check(accepted=trainer.sanity_checking)
        if self._evaluation is not None and not trainer.sanity_checking and (alone or not first):
            logits, captured = self._capture(trainer, pl_module, measured)
            labels = measured.labels(logits)
            if labels is None:
                self._say("KVCacheCompression compares attention alone: there are no logits with labels of their shape")
            for number, decoded in self._evaluation.measure(captured):
                if labels is not None and logits is not None:
                    with replaced(self._layers, decoded), trainer.precision_plugin.forward_context():
                        changed = measured(pl_module)
                    assert changed is not None
                    self._evaluation.sums.network[number] += logit_change(logits, changed, labels)
                    self._evaluation.sums.paired[number] += paired_change(logits, changed, labels)
            self._check(accepted=True)

    def _capture(
        self, trainer: Trainer, pl_module: LightningModule, run: SampledBatch
    ) -> tuple[Tensor | None, Mapping[str, Captured]]:
        with trainer.precision_plugin.forward_context():
            logits, captured, unreadable = capture(self._layers, lambda: run(pl_module))
        for name, reason in unreadable.items():
            self._say(f"KVCacheCompression cannot read {name!r} and leaves it out: {reason}")
        for name, seen in captured.items():
            if not seen.explained:
                self._say(
                    f"KVCacheCompression does not know the attention of {name!r}, which gives something else than "
                    f"softmax(Q Kᵀ) V of what was captured: its attention measures are left out"
                )
        return logits, captured

    def _check(self, accepted: bool) -> None:
        """Before all codecs have worked once, what a given one refuses is an error; later on nothing ends a run."""
        assert self._evaluation is not None
        for name, (layers, error) in self._evaluation.failed.items():
            where = abbreviate_names([*map(repr, layers)])
            if not self._accepted and self.codecs is not None:
                raise ValueError(f"codecs[{name!r}], on {where}: {error}") from error
            which = f"the default codec {name!r}" if self.codecs is None else f"codecs[{name!r}]"
            self._say(f"KVCacheCompression leaves out {which} where it fails, as on {where}: {error}")
        self._accepted |= accepted

    def _say(self, warning: str) -> None:
        if warning not in self._said:
            self._said.add(warning)
            rank_zero_warn(warning)


def _prefix(trainer: Trainer) -> str:
    return "kv_test" if trainer.state.fn == TrainerFn.TESTING else "kv"
