import pytest

from eigenscope.results.run_clock import RunClock


class Time:
    now = 100.0

    def __call__(self):
        return self.now


def test_training_leaves_pauses_out():
    time = Time()
    clock = RunClock(time)
    assert (clock.seconds, clock.training_seconds) == (0, 0)
    time.now += 5  # not started yet
    clock.proceed()  # as after a validation before the training
    time.now += 5
    clock.start()
    time.now += 3
    clock.pause()
    time.now += 2
    assert (clock.seconds, clock.training_seconds) == (5, 3)
    clock.proceed()
    clock.proceed()
    time.now += 4
    assert (clock.seconds, clock.training_seconds) == (9, 7)
    clock.stop()
    time.now += 50
    clock.stop()
    assert (clock.seconds, clock.training_seconds) == (9, 7)


@pytest.mark.parametrize("paused", [False, True])
def test_what_was_before_adds_up(paused):
    time = Time()
    first, second = RunClock(time), RunClock(time)
    first.start()
    time.now += 3
    if paused:
        first.pause()
    time.now += 1
    second.go_on_from(first.seconds, first.training_seconds)
    time.now += 20
    second.start()
    time.now += 6
    assert (second.seconds, second.training_seconds) == (10, 9 if paused else 10)
