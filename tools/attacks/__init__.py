"""The suite of attack: bad input by the thousand, and the one place that says what a right answer to it is.

``python tools/attack.py`` runs it; ``tests/attack`` runs a seeded thousand in every test run.
"""
