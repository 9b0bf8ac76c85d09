"""Data and weights of the paper scale: found by experiment, told beforehand, fetched, checked and put in place."""
