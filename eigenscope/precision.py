"""Floating-point precisions: names, and what a device computes in hardware."""

import torch

_NAMES = {"None": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}


def precision_name(word: str | int | None) -> str:
    """The full name of a trainer's precision, such as ``32-true`` of ``32`` and of None, the default.

    Args:
        word: any of those that Lightning takes; others are returned as text.
    """
    return _NAMES.get(str(word), str(word))


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies float32 matrices in TF32 when ``torch.set_float32_matmul_precision`` lets it.

    Args:
        device: a GPU of compute capability 8.0 or later has it; nothing else.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def has_bf16(device_type: str) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware rather than by emulation.

    Args:
        device_type: ``cuda``, ``cpu`` or any other torch device type; False for the others.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        capabilities: dict[str, object] = getattr(
            torch.cpu, "get_capabilities", dict
        )()  # torch 2.11 cannot tell: taken as no
        return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
