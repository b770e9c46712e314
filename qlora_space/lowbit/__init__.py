"""Bases of 2, 3 and 4 bits: packed linears, quantizing block by block, adapter starts that repair the error."""
