"""A model on disk: its manifest, the listed files, the ONNX graphs, and known answers for a self-test."""
