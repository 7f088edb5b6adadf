"""Modules of blocks, one kind a file; planer/specs has the specifications of the same names."""

from planer.specs.plugins import plugin_folders

__path__ += plugin_folders("blocks")
