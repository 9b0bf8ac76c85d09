"""Models and attribution methods of other libraries, as what this one explains and plays.

Each module is for one library, and is imported by its name, such as :mod:`metagame.bridges.captum`.
"""
