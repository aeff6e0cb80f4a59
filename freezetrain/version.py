"""The version of the installed package, which setuptools-scm made of the last tag."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("freezetrain")
except PackageNotFoundError:  # a folder that was not installed
    __version__ = "0.0.0"
