"""Colours and line styles of measured, untrained, random and target values in every figure."""

from typing import Any

# Okabe and Ito's colours, which colour-blind readers tell apart; the line styles tell them apart in print.
NETWORK: dict[str, Any] = {"color": "#0072B2", "linestyle": "-"}
UNTRAINED: dict[str, Any] = {"color": "#009E73", "linestyle": "--"}
RANDOM: dict[str, Any] = {"color": "#E69F00", "linestyle": ":"}
TARGET: dict[str, Any] = {"color": "#CC79A7", "linestyle": "-"}
