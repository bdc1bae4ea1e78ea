"""Labelled images and classifiers from what people have, and those that ship with the package."""
