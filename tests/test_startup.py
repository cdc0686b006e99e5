import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEW = """
import sys
import lightning.pytorch, torch, torchvision
before = set(sys.modules)
import {module}
assert not torch.cuda.is_initialized()
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
    "shtab",
}


def packages_beyond_lightning(module):
    code = NEW.format(module=module)
    command = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stderr == ""
    (printed,) = run.stdout.splitlines()
    return set(printed.split())


def test_the_command_line_loads_no_slow_package_that_lightning_does_not():
    found = packages_beyond_lightning("eigenscope.cli.dispatch")
    assert found >= OURS
    assert found - OURS - sys.stdlib_module_names <= LIGHT
