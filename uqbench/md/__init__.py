"""Molecular dynamics of many replicas on one model."""
