"""Adapters for models and attribution methods of other libraries.

Each module is for one library, and is imported by its name, such as :mod:`metagame.bridges.captum`.
"""
