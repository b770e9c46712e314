"""Reading: from a dataset's id or path to rows, in bounded memory and within budgets for hostile files.

Read `sources.py` first (what a dataset is: demo, file, folder, Hub), then `readers.py` (which reader for
which file) and `text_rows.py` (JSON lines, JSON, CSV, text). `streams.py` decompresses under a budget;
`json_array.py` parses arrays that do not fit in memory. `table_rows.py` reads Parquet and Arrow and asks
`unpacked_sizes.py` before it unpacks anything. `hub_rows.py` streams the same files from the Hub.
"""
