"""The truth of every kernel, in plain torch and float32."""

from qlocal.kernels.reference.values import dequantize, quant_matmul, select_rows

__all__ = ["dequantize", "quant_matmul", "select_rows"]
