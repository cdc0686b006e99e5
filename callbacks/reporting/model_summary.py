"""Summary of a model's parts before training: classes and numbers of parameters."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import summarize
from torch import nn
from torchmetrics import Metric

from eigenscope.callbacks._output import print_beside_bar
from eigenscope.text import text_table


class ParameterSummary(ModelSummary):
    """Prints the parts of the module with their classes and numbers of parameters, without its metrics.

    Operations of a forward pass (FLOPs) are named if they are known, which needs an ``example_input_array``.

    Args:
        max_depth: of the parts; 0 prints nothing, -1 all of them.
    """

    affects_training = False

    def __init__(self, max_depth: int = 1) -> None:
        super().__init__(max_depth)
        self.max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints it."""
        if not self.max_depth:
            return
        found = summarize(pl_module, max_depth=self.max_depth)
        metrics = tuple(name for name, part in pl_module.named_modules() if name and _is_metric(part))
        rows = [
            [name, kind, f"{number:,}"]
            for name, kind, number in zip(found.layer_names, found.layer_types, found.param_nums, strict=True)
            if not f"{name}.".startswith(tuple(f"{metric}." for metric in metrics))
        ]
        table = text_table(["part", "class", "parameters"], rows)
        frozen = found.total_parameters - found.trainable_parameters
        flops = f", {found.total_flops:,} FLOPs a forward pass" if found.total_flops else ""
        total = f"{found.total_parameters:,} parameters, {frozen:,} of them frozen{flops}"
        print_beside_bar(trainer, pl_module, f"{table}\n{total}\n")


def _is_metric(part: nn.Module) -> bool:
    """Whether a module is a metric, or holds nothing but metrics."""
    if isinstance(part, Metric):
        return True
    children = list(part.children())
    own = [*part.parameters(recurse=False)]
    return bool(children) and not own and all(map(_is_metric, children))
