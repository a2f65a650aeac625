"""Simulations on a trained model: what a potential is worth in use."""
