"""The version, in the place that a checkout without metadata has too."""

__version__ = "0.1.0"
