"""The version, where packaging reads it without importing the engine and NumPy."""

__version__ = "0.1.0"
