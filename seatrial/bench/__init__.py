"""Sweeps and the store; knows the abstractions, never a concrete method."""
