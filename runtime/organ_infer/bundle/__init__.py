"""A model on disk: its manifest, the listed files, the ONNX graphs and the golden answers."""
