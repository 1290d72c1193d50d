"""Export: a trained network becomes an ONNX member, members become a bundle, and every step is verified."""
