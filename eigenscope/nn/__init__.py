"""Networks, and the hook points through which their intermediate tensors are observed."""

from eigenscope.nn.battery_array import BatteryArray
from eigenscope.nn.battery_container import BatteryEntry, load_batteries, save_batteries
from eigenscope.nn.battery_scores import cross_evaluate
from eigenscope.nn.causal_transformer import CausalTransformer, llama_weights
from eigenscope.nn.deit import DeiT
from eigenscope.nn.free_matrix import FreeMatrix
from eigenscope.nn.hook_point import HookPoint, hook_points, observe, watch
from eigenscope.nn.implants import ImplantedVAE
from eigenscope.nn.linear_readout import LinearReadoutAutoencoder, ReadoutCode
from eigenscope.nn.patch_autoencoder import PatchAutoencoder
from eigenscope.nn.patch_svae import PatchSVAE, SpectralCode
from eigenscope.nn.simplex_code import SimplexCode
from eigenscope.nn.simplex_vae import SimplexVAE
from eigenscope.nn.taps import SVDTaps, TapConfig, tap_features

__all__ = [
    "BatteryArray",
    "BatteryEntry",
    "CausalTransformer",
    "DeiT",
    "FreeMatrix",
    "HookPoint",
    "ImplantedVAE",
    "LinearReadoutAutoencoder",
    "PatchAutoencoder",
    "PatchSVAE",
    "ReadoutCode",
    "SVDTaps",
    "SimplexCode",
    "SimplexVAE",
    "SpectralCode",
    "TapConfig",
    "cross_evaluate",
    "hook_points",
    "llama_weights",
    "load_batteries",
    "observe",
    "save_batteries",
    "tap_features",
    "watch",
]
