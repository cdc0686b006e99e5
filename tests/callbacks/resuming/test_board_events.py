import pytest
from torch.utils.tensorboard import SummaryWriter

from eigenscope.callbacks.resuming.continued_tensorboard import board_events


@pytest.fixture
def files(tmp_path):
    """A run of steps 0 to 5 at as many seconds; from step 3 on another, at seconds from 10 on."""
    for number, (purge, steps) in enumerate([(None, range(6)), (3, range(3, 5))]):
        with SummaryWriter(str(tmp_path), purge_step=purge, filename_suffix=f".{number}") as writer:
            for step in steps:
                writer.add_scalar("a", step, step, walltime=step + 10 * number)
    return sorted(tmp_path.iterdir(), key=lambda file: file.suffix)


def places(events):
    return [(event.step, event.wall_time, event.summary.value[0].tag) for event in events]


def test_what_a_restart_made_forgotten_is_left_out(files):
    assert places(board_events(files, 0)) == [(step, t, "a") for step, t in [(0, 0), (1, 1), (2, 2), (3, 13), (4, 14)]]
    assert places(board_events(files, 2)) == [(2, 2, "a"), (3, 13, "a"), (4, 14, "a")]
    assert places(board_events(files[:1], 4)) == [(4, 4, "a"), (5, 5, "a")]
    assert board_events([], 0) == []


def test_what_is_later_is_passed_over_restarts_too(files):
    assert places(board_events(files, 2, until=4)) == [(2, 2, "a"), (3, 3, "a"), (4, 4, "a")]
