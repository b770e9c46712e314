"""Bases of 2, 3 and 4 bits: packed linears, quantizing block by block, adapter starts that repair the error."""

from qlora_space.model.load import load_packed, load_quantized

__all__ = ["load_packed", "load_quantized"]
