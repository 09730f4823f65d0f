"""bf16, which numpy has not, as the bits of its numbers."""
import numpy as np


def to_bfloat16(values):
    """Round float32 to the nearest bf16, ties to even; returned as its uint16 bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
