"""Reads slices from files and objects: formats, decoding, orientation."""
