"""Command line of Eigenscope in a checkout: ``python cli.py fit --config configs/demo.yaml``."""

from eigenscope.cli import main, script

__all__ = ["main", "script"]

if __name__ == "__main__":
    script()
