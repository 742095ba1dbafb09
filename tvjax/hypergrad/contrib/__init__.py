"""Estimators for special cases, which need more than an optimiser and two losses."""
