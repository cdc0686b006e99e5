"""Eigenbasis rotation of a preconditioned optimizer (SOAP, REKLS), monitored during training."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from eigenscope.callbacks._output import print_beside_bar, run_folder, tensorboard_loggers
from eigenscope.callbacks.spectra.rotation_log import RotationLog
from eigenscope.charts import Chart, present
from eigenscope.optim.eigenbases.attached_replicas import AttachedReplicas
from eigenscope.optim.eigenbases.factors import kronecker_factors
from eigenscope.optim.eigenbases.precision_replica import ReplicaPrecision
from eigenscope.optim.eigenbases.reference_snapshots import POST_SPIKE, PRE_SPIKE, ReferenceSnapshots
from eigenscope.optim.eigenbases.snapshots import EigenbasisSnapshot, take_snapshot
from eigenscope.optim.eigenbases.spike_detector import SpikeDetector
from eigenscope.optim.eigenbases.tracked_parameters import (
    TrackedParameter,
    check_comparable,
    optimizer_parts,
    tracked_parameters,
)


class EigenbasisRotation(Callback):
    """Monitors the eigenbasis rotation of SOAP's or REKLS's Kronecker factors, above all around gradient spikes.

    Every ``every_n_steps`` steps of the optimizer it compares both factors of each tracked parameter with earlier
    states, the *references*: ``previous`` (one step earlier), ``lag:n`` (n steps earlier), ``pre_spike`` and
    ``post_spike`` (the states just before and just after the step of the latest spike). A reference that is not there
    yet is left out.

    A spike begins at a step whose gradient norm, over the tracked parameters and before clipping, exceeds
    ``spike_factor`` times the median of the last 50 norms, of which there must be ten, if that of the step before did
    not; and at each of ``spike_steps``. A norm that is not finite is passed over. Spikes are printed.

    Written to every logger, at the step: ``rotation/grad_norm`` (also at spikes), and for each parameter, side (``L``
    of its rows, ``R`` of its columns) and reference (``lag_10`` for ``lag:10``)

    - ``rotation/<parameter>/<side>/<reference>/top1_deg``, ``…/topk_deg``, ``…/distance``, ``…/change``,
      ``…/shape_change``: see :class:`~eigenscope.optim.eigenbases.rotation.Rotation`;
    - ``rotation/<parameter>/<side>/gap``: the largest eigenvalue over the second;
    - with a replica ``rotation/<parameter>/<side>/replica_divergence``, ‖A_replica − A‖ / ‖A‖, and
      ``…/replica_topk_deg``, the top-k angle between the two eigenbases.

    The log folder gets the same in ``rotation.csv``, ``spectrum.csv`` (eigenvalues of ranks 1, 2, 5 and 10) and
    ``replica.csv``. TensorBoard gets, after epochs and at the end, ``rotation/verdicts`` as text, see
    :func:`~eigenscope.optim.eigenbases.rotation.verdict`, and for each parameter the figures
    ``rotation/<parameter>/angles``, ``…/eigenvalues`` and ``…/overlap``, |QᵀQ_ref| for ``pre_spike`` or else the oldest
    reference; curves are of the last 2000 measurements. Parameters go by their names in the network. The latest
    verdicts are printed at the end.

    Step s is the s-th of the optimizer, counting those that a gradient scaler skips; the state "at s" is the one after
    it. At most one step a batch is measured. The state goes with checkpoints, and a resumed run logs what an
    uninterrupted one would. A snapshot holds four matrices a parameter, 2m² + 2n² numbers of an m×n one; there is one
    for each spike reference and for each measurement that a lag reaches over. Under DDP rank zero measures. Training
    is not touched. With an optimizer that keeps no such factors it warns once and does nothing.

    Args:
        parameters: patterns of parameter names, with or without the leading ``net.``; None watches the ``largest``.
        largest: number of parameters with factors to track, largest first, where ``parameters`` is None.
        every_n_steps: steps from one measurement to the next.
        k: leading eigenvectors whose span is compared.
        references: snapshots to compare with, see above.
        spike_factor: how far above its running median a gradient norm is a spike; None finds none.
        spike_steps: steps that are spikes whatever their gradient; 1 is the first.
        replica_precision: also keeps factors computed at this matmul precision from the same gradients; see
            :class:`~eigenscope.optim.eigenbases.precision_replica.ReferencePrecisionReplica`, also for what it costs.
        emulate: rounds the replica's products as TF32 on devices without it.
        draw_every_n_epochs: epochs from one drawing to the next; three figures a parameter take about 0.6 s.

    Raises:
        ValueError: an argument is out of range or has no effect; or, before the first step, a pattern matches no
            parameter or none with factors, ``k`` exceeds a tracked parameter's smaller dimension, a spike step lies
            outside the run, tracked parameters have different optimizers, or the replica cannot be.
    """

    affects_training = False

    def __init__(
        self,
        parameters: Sequence[str] | None = None,
        largest: int = 4,
        every_n_steps: int = 10,
        k: int = 8,
        references: Sequence[str] = ("previous", "lag:10", "pre_spike", "post_spike"),
        spike_factor: float | None = 10.0,
        spike_steps: Sequence[int] | None = None,
        replica_precision: ReplicaPrecision | None = None,
        emulate: bool = False,
        draw_every_n_epochs: int = 1,
    ) -> None:
        for name, value in (("largest", largest), ("k", k), ("draw_every_n_epochs", draw_every_n_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if parameters is not None and (isinstance(parameters, str) or not parameters):
            raise ValueError(f"parameters must be a list of patterns or None, got {parameters!r}")
        if min(spike_steps or [1]) < 1:
            raise ValueError(f"spike_steps must be at least 1, which is the first step, got {list(spike_steps or [])}")
        if replica_precision not in (None, "highest", "high"):
            raise ValueError(f"replica_precision must be 'highest', 'high' or None, got {replica_precision!r}")
        if emulate and replica_precision != "high":
            raise ValueError(f"emulate needs replica_precision 'high', got {replica_precision!r}")
        self.parameters = None if parameters is None else list(parameters)
        self.largest = largest
        self.every_n_steps = every_n_steps
        self.k = k
        self.references = tuple(references)
        self.spike_factor = spike_factor
        self.spike_steps = sorted(set(spike_steps or ()))
        self.replica_precision = replica_precision
        self.emulate = emulate
        self.draw_every_n_epochs = draw_every_n_epochs
        self._restored: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._tracked: dict[str, TrackedParameter] = {}
        self._references = ReferenceSnapshots(self.references, self.every_n_steps)
        self._detector = SpikeDetector(self.spike_factor)
        self._log = RotationLog(self.k)
        self._replicas = AttachedReplicas({}, None)
        self._step = 0  # of the optimizer, taken
        self._pending = 0  # about to be taken, or taken in this batch
        self._norm = torch.nan
        self._spikes = False  # the step of this batch does
        self._drawn: int | None = None
        self._logged: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Selects the parameters to track."""
        self._forget()
        optimizers = [_bare(optimizer) for optimizer in trainer.optimizers]
        self._tracked = tracked_parameters(pl_module.named_parameters(), optimizers, self.parameters, self.largest)
        check_comparable(self._tracked, self.k)
        if not self._tracked:
            names = ", ".join(type(part).__name__ for part in optimizer_parts(optimizers)) or "no optimizer"
            rank_zero_warn(f"EigenbasisRotation does nothing: {names} keeps no eigenbases (Q_L), as SOAP and REKLS do")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the state of a resumed run, and opens the CSV files."""
        if not self._tracked:
            return
        if self.spike_steps and pl_module.automatic_optimization and not getattr(trainer, "fast_dev_run", False):
            total = trainer.estimated_stepping_batches
            if 0 <= total < self.spike_steps[-1]:
                raise ValueError(f"spike_steps must be in the run, which has {total} steps, got {self.spike_steps[-1]}")
        self._step = trainer.global_step
        self._replicas = AttachedReplicas(self._tracked, self.replica_precision, self.emulate)
        if self._replicas and not self._replicas.differ:
            rank_zero_warn(
                f"replica_precision {self.replica_precision!r} is that of the optimizer: the replica will not differ"
            )
        state, self._restored = self._restored, {}
        if not trainer.is_global_zero:
            self._forget()  # after all ranks have seen what is wrong
            return
        if state.get("watched"):
            self._restore(state)
        self._replicas.attach()
        folder = run_folder(trainer)
        if folder is not None:
            self._log.open_files(folder, self._step, with_replica=bool(self._replicas))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Detects a gradient-norm spike, and stores the snapshot before it."""
        if not self._tracked or next(iter(self._tracked.values())).outer is not _bare(optimizer):
            return
        self._pending += 1
        self._replicas.expect_step()
        step = self._step + self._pending
        if self.spike_factor is None and step not in self.spike_steps and not self._references.measures_at(step):
            return  # nobody asks for the norm, and it waits for the device
        found = [tracked.parameter.grad for tracked in self._tracked.values()]
        gradients = [gradient.detach().float() for gradient in found if gradient is not None]
        usual = self._detector.median
        self._norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else torch.nan
        jumps = self._detector.update(self._norm)
        if not jumps and step not in self.spike_steps:
            return
        self._spikes = True
        self._references.post_spike = None
        if PRE_SPIKE in self._references.names:
            before = self._snapshot(step - 1)
            self._references.pre_spike = before if before.bases else None
        self._log.spike(step)
        beside = "" if usual is None else f", {self._norm / usual if usual else torch.inf:.3g} × the running median"
        text = f"spike at step {step}: gradient norm {self._norm:.4g}{beside}"
        print_beside_bar(trainer, pl_module, text)
        for board in tensorboard_loggers(trainer):
            board.experiment.add_text("rotation/spikes", text, global_step=step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures if it is due, and stores the snapshots that later measurements need."""
        if not self._pending:
            return
        self._step += self._pending
        self._pending = 0
        measures, keeps = self._references.measures_at(self._step), self._references.needs(self._step)
        metrics: dict[str, float] = {}
        if measures or self._spikes:
            metrics["rotation/grad_norm"] = self._norm
        if measures or keeps or (self._spikes and POST_SPIKE in self._references.names):
            now = self._snapshot(self._step)
            if self._spikes and POST_SPIKE in self._references.names and now.bases:
                self._references.post_spike = now
            if measures and now.bases:
                metrics |= self._log.measure(now, self._references.at(self._step), bool(tensorboard_loggers(trainer)))
                if self._replicas:
                    metrics |= self._log.measure_replica(now, take_snapshot(self._step, self._replicas.factors()))
            if keeps and now.bases:
                self._references.keep(now)
        self._references.forget(self._step)
        self._spikes = False
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=self._step)
            self._logged |= metrics.keys()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the figures."""
        if (trainer.current_epoch + 1) % self.draw_every_n_epochs == 0:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the latest figures, and prints the latest verdicts."""
        self._draw(trainer)
        if self._log.measured is not None:
            print_beside_bar(trainer, pl_module, self._log.summary())
        self._replicas.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Removes the optimizer hooks."""
        self._replicas.detach()

    def charts(self, logged: Collection[str]) -> list[Chart]:
        """Angles and sizes of the tracked parameters, beside the norm of their gradient."""
        norm = Chart("Eigenbases", "gradient norm of the tracked parameters", ("rotation/grad_norm",))
        return present([norm, *self._log.charts()], self._logged)

    @property
    def state_key(self) -> str:
        """Differs between instances that track different parameters; two for the same are refused by Lightning."""
        return f"EigenbasisRotation{self.parameters or f'[largest {self.largest}]'}"

    def state_dict(self) -> dict[str, Any]:
        """References, gradient norms, curves and replicas."""
        return {
            "watched": list(self._tracked),
            "step": self._step,
            "references": self._references.state_dict(),
            "detector": self._detector.state_dict(),
            "log": self._log.state_dict(),
            "replicas": self._replicas.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores those of the resumed run, when training starts."""
        self._restored = state_dict

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
        devices = {
            (name, side): tracked.parameter.device for name, tracked in self._tracked.items() for side in ("L", "R")
        }
        self._references.load_state_dict(state["references"], devices)
        self._detector.load_state_dict(state["detector"])
        self._log.load_state_dict(state["log"], self._tracked)
        self._replicas.load_state_dict(state["replicas"])

    def _snapshot(self, step: int) -> EigenbasisSnapshot:
        found = {name: kronecker_factors(w.optimizer, w.parameter) for name, w in self._tracked.items()}
        return take_snapshot(step, {name: factors for name, factors in found.items() if factors is not None})

    def _draw(self, trainer: Trainer) -> None:
        measured = self._log.measured
        if measured is None or measured == self._drawn or not tensorboard_loggers(trainer):
            return
        self._drawn = measured
        figures = self._log.figures()
        for board in tensorboard_loggers(trainer):
            board.experiment.add_text("rotation/verdicts", self._log.card(), global_step=self._step)
            for tag, figure in figures.items():
                board.experiment.add_figure(tag, figure, global_step=self._step)


def _bare(optimizer: Any) -> Optimizer:
    """Without Lightning's wrapper, a ``LightningOptimizer``."""
    return optimizer if isinstance(optimizer, Optimizer) else optimizer.optimizer
