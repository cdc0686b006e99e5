"""Who raised an error, read from its traceback."""

import traceback

_BEFORE_TRAINING = {
    "before_fit",
    "prepare_data",
    "restore_datamodule",
    "setup_data",
    "setup_optimizers",
    "on_fit_start",
    "on_train_start",
    "_call_setup_hook",
    "_run_sanity_check",
}


def own_error(error: BaseException) -> BaseException:
    """What a class raised when it was given its arguments, which jsonargparse wraps once per level of nesting.

    Args:
        error: as it left jsonargparse.
    """
    while _is_from_jsonargparse(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def is_from_setup(error: BaseException) -> bool:
    """Whether it was raised before the first step, while Lightning had all parts of the run looked over.

    Args:
        error: with its traceback.
    """
    return not _BEFORE_TRAINING.isdisjoint(frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))


def _is_from_jsonargparse(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("jsonargparse")
