"""Networks, and the probes through which their inner tensors are observed."""

from eigenscope.nn.deit import DeiT
from eigenscope.nn.patch_svae import PatchSVAE, SpectralCode
from eigenscope.nn.probe import Probe, observe, probes, watch
from eigenscope.nn.taps import SVDTaps, TapConfig, tap_features

__all__ = [
    "DeiT",
    "PatchSVAE",
    "Probe",
    "SVDTaps",
    "SpectralCode",
    "TapConfig",
    "observe",
    "probes",
    "tap_features",
    "watch",
]
