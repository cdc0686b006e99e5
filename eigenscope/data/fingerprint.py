"""Fingerprint (checksum) of a data set's content."""

import hashlib
import json
from typing import Any

from torch import Tensor


def fingerprint(size: int, *content: Any) -> str:
    """The beginning of a SHA-256 and the number of samples: ``3f2a9c51d07e (10,000 samples)``.

    Args:
        size: samples of the set.
        *content: tensors, taken with shape, dtype and every byte; anything else as JSON.
    """
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous()
            digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
            digest.update(part.numpy())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return f"{digest.hexdigest()[:12]} ({size:,} samples)"
