"""Checks of this machine, this Python and its packages, with advice."""
