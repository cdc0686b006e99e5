import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEW = """
import sys
import lightning.pytorch, torch, torchvision
before = set(sys.modules)
import {module}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""
OURS = {"eigenscope"}
LIGHT = {
    "lightning",
    "torch",
    "torchvision",
    "jsonargparse",
    "typeshed_client",
    "docstring_parser",
    "yaml",
    "safetensors",
}


def packages_beyond_lightning(module):
    code = NEW.format(module=module)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_the_command_line_loads_no_slow_package_that_lightning_does_not():
    found = packages_beyond_lightning("eigenscope.cli.dispatch")
    assert found >= OURS
    assert found - OURS - sys.stdlib_module_names <= LIGHT
