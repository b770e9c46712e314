"""Inspection: what a dataset is and what is wrong with it, before any GPU is used.

Read `inspect_dataset.py` first (the whole way), then `problems.py` (the table of problem codes, and what is
wrong with single rows), `dataset_checks.py` (what is wrong with all rows together; `near_duplicates.py`
helps it) and `xray.py` (rows shown token by token).
"""
