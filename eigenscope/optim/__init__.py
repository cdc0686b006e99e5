"""Optimizers of matrices: SOAP, REKLS and Muon at a stated precision, and the composite SplitOptimizer."""

from eigenscope.optim.factors import KroneckerFactors, kronecker_factors, preconditioner
from eigenscope.optim.muon import Muon
from eigenscope.optim.routing import Route, Routed, routing_table
from eigenscope.optim.soap import REKLS, SOAP
from eigenscope.optim.split import NOT_MATRICES, SplitOptimizer

__all__ = [
    "NOT_MATRICES",
    "REKLS",
    "SOAP",
    "KroneckerFactors",
    "Muon",
    "Route",
    "Routed",
    "SplitOptimizer",
    "kronecker_factors",
    "preconditioner",
    "routing_table",
]
