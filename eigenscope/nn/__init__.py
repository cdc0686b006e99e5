"""Networks, and the hook points through which their intermediate tensors are observed."""

from eigenscope.nn.autoencoders.implants import ImplantedVAE
from eigenscope.nn.autoencoders.linear_readout import LinearReadoutAutoencoder, ReadoutCode
from eigenscope.nn.autoencoders.patch_autoencoder import PatchAutoencoder
from eigenscope.nn.autoencoders.patch_svae import PatchSVAE, SpectralCode
from eigenscope.nn.autoencoders.simplex_code import SimplexCode
from eigenscope.nn.autoencoders.simplex_vae import SimplexVAE
from eigenscope.nn.batteries.battery_array import BatteryArray
from eigenscope.nn.batteries.battery_container import BatteryEntry, load_batteries, save_batteries
from eigenscope.nn.batteries.battery_scores import cross_evaluate
from eigenscope.nn.free_matrix import FreeMatrix
from eigenscope.nn.hook_point import HookPoint, attach_hooks, hook_points, observe
from eigenscope.nn.transformers.causal_transformer import CausalTransformer, llama_weights
from eigenscope.nn.transformers.deit import DeiT
from eigenscope.nn.transformers.taps import SVDTaps, TapConfig, tap_features

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
    "attach_hooks",
    "cross_evaluate",
    "hook_points",
    "llama_weights",
    "load_batteries",
    "observe",
    "save_batteries",
    "tap_features",
]
