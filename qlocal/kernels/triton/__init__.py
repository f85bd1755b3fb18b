"""Quantized products on NVIDIA cards, Ampere and later, in Triton: no CUDA compiler on the user's machine.

`layout.py` repacks a weight once, `decode.py` says what its bits are worth, `gemv.py` multiplies up to 16 tokens and
`gemm.py` more. Only `layout.py` may be imported where triton is not installed.
"""
