"""The version of slap-fast: read by the build, the package and the native module."""

__version__ = "0.1.0"
