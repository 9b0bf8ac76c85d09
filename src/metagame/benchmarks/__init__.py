"""Benchmarks: samples in, scores out."""
