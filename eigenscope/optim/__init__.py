"""Optimizers of matrices (SOAP, REKLS, Muon, the composite SplitOptimizer) and learning-rate schedules."""

from eigenscope.optim.eigenbases.factors import KroneckerFactors, kronecker_factors, preconditioner
from eigenscope.optim.muon import Muon
from eigenscope.optim.routing import Route, Routed, routing_table
from eigenscope.optim.schedules import CosineAnnealingLR, LinearLR, OneCycleLR, PolynomialLR, run_length
from eigenscope.optim.soap import REKLS, SOAP
from eigenscope.optim.split import NOT_MATRICES, SplitOptimizer

__all__ = [
    "NOT_MATRICES",
    "REKLS",
    "SOAP",
    "CosineAnnealingLR",
    "KroneckerFactors",
    "LinearLR",
    "Muon",
    "OneCycleLR",
    "PolynomialLR",
    "Route",
    "Routed",
    "SplitOptimizer",
    "kronecker_factors",
    "preconditioner",
    "routing_table",
    "run_length",
]
