import subprocess

import pytest
import torch

from eigenscope.results.environment import PACKAGES, code_state, hardware, peak_memory, versions

NONE = {"repository": None, "commit": None, "clean": None}


def git(folder, *command):
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # as in a hook
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "repository"
    (folder / "inside").mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "inside" / "file").write_text("a")
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


def test_the_commit_and_whether_the_tree_is_clean(repository):
    commit = git(repository, "rev-parse", "HEAD")
    clean = {"repository": str(repository), "commit": commit, "clean": True}
    assert code_state([repository]) == code_state([repository / "inside"]) == clean
    (repository / "ignored").write_text("b")
    assert code_state([repository]) == clean
    (repository / "new").write_text("b")
    assert code_state([repository]) == clean | {"clean": False}
    (repository / "new").unlink()
    (repository / "inside" / "file").write_text("b")
    assert code_state([repository / "inside"]) == clean | {"clean": False}


def test_the_first_folder_in_a_repository_counts(repository, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")  # without a commit
    assert code_state([tmp_path, empty, tmp_path / "nowhere", repository])["repository"] == str(repository)
    assert code_state([tmp_path, empty]) == code_state([]) == NONE


def test_no_git_or_a_slow_one_is_no_error(repository, tmp_path, monkeypatch):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nsleep 20\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:/usr/bin:/bin")
    assert code_state([repository], timeout=0.05) == NONE
    slow.unlink()
    monkeypatch.setenv("PATH", str(slow.parent))
    assert code_state([repository]) == NONE


def test_versions_are_those_that_run():
    found = versions()
    assert found["torch"] == torch.__version__
    assert {"python", *PACKAGES, "cuda", "cudnn"} == set(found)
    assert all(found[package] is not None for package in ("python", *PACKAGES))


def test_hardware_and_memory():
    machine = hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    block = torch.ones(2**25)  # 128 MiB
    assert block.nbytes < peak_memory(torch.device("cpu"))["cpu"] < machine["memory"]
    assert len(machine["gpus"]) == torch.cuda.device_count()
