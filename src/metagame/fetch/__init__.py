"""Weights and data of the paper scale: found by experiment, told beforehand, fetched, checked and put in place."""
