"""How Lightning writes and reads its checkpoints."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from eigenscope.checkpoints import previous_checkpoint, read_checkpoint, write_checkpoint


class CheckpointFiles(CheckpointIO):
    """Checkpoints that are whole, that keep their predecessor, and that load without executing code.

    A plugin of the trainer, over :mod:`eigenscope.checkpoints`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a file, whole or not at all."""
        if storage_options is not None:
            raise ValueError("storage_options are for other kinds of storage than files")
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file, or the one before it if that is damaged; plain values and tensors only."""
        return read_checkpoint(Path(path), "cpu" if callable(map_location) else map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a file and the one before it."""
        for file in (Path(path), previous_checkpoint(Path(path))):
            file.unlink(missing_ok=True)
