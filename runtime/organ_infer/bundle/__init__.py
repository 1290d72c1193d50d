"""A model on disk: the manifest, the files it lists, its ONNX graphs and its golden answers."""
