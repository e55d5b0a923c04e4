"""The kernels in Triton, and what launches them on plain tensors: imported only where they run. The first lesson is `matmul.py`."""
