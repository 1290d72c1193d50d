"""One slice from one file or object: formats, decoding, orientation."""
