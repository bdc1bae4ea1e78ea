"""Checks, windows, random numbers and other small things that every layer uses."""
