"""Formats: from a row's columns to a conversation, a preference, a labelled answer or a text.

Read `rules.py` first (the table of formats), then `detect.py` (which format a dataset has),
`examples.py` (a row to an example, one function a format) and `turns.py` (one turn in any spelling). A new
format is a rule in `rules.py` and a function in `examples.py`.
"""
