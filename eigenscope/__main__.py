"""Command line of Eigenscope: ``python -m eigenscope fit --config eigenscope:demo``."""

from eigenscope.cli import script

if __name__ == "__main__":
    script()
