"""Networks in onnxruntime: sessions on CPU and CUDA, the averaged ensemble, the cache of optimized graphs."""
