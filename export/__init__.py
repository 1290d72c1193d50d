"""Exports trained networks to ONNX members and members to bundles. Every step is verified."""
