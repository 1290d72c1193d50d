"""Files and objects to slices: formats, decoding, orientation."""
