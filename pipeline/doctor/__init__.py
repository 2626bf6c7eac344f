"""What is wrong with this machine, this Python and its packages, and what to do about it."""
