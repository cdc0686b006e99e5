"""Shows which optimizer each parameter goes to."""

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.boards import boards
from callbacks.printing import print_beside_bar
from eigenscope.optim import Routed, routing_table


class ParameterRouting(Callback):
    """Prints the routing table once, when training starts, and logs it as a text card ``optimizer/routing``.

    An optimizer without ``routes``, such as AdamW alone, has no table: nothing is printed then.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints and logs the table."""
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, Routed):
                table = routing_table(optimizer.routes)
                print_beside_bar(trainer, pl_module, table)
                for logger in boards(trainer) if trainer.is_global_zero else []:
                    card = "\n".join(f"    {line}" for line in table.splitlines())  # Markdown's code block
                    logger.experiment.add_text("optimizer/routing", card, trainer.global_step)
