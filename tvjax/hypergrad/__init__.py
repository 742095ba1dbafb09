"""Derivatives of an outer loss in hyperparameters of an inner one; knows pytrees, not images."""

from tvjax.hypergrad.adam import adam, adamw, scale_by_adam
from tvjax.hypergrad.one_step import exact, paper, sgd_formula
from tvjax.hypergrad.problem import Bilevel, Estimate, Estimator, InnerState

__all__ = [
    "Bilevel",
    "Estimate",
    "Estimator",
    "InnerState",
    "adam",
    "adamw",
    "exact",
    "paper",
    "scale_by_adam",
    "sgd_formula",
]
