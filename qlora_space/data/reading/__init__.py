"""Reading: from a dataset's id or path to rows, in bounded memory and within budgets for hostile files.

Read `sources.py` first (what a dataset is: demo, file, folder, zip, Hub), then `folders.py` (which of its files
are rows, of which split) and `readers.py` (which reader for which file; `core/file_kinds.py` lists the kinds).

| kind | reader |
|---|---|
| JSON in any layout | `json_rows.py`; `json_values.py` parses what does not fit in memory |
| CSV, TSV | `csv_rows.py`; `header.py` tells names from data |
| text, Markdown, HTML | `documents.py`, `html_text.py` |
| Excel | `xlsx_rows.py` |
| Parquet, Arrow | `table_rows.py`, which asks `unpacked_sizes.py` before it unpacks anything |

`streams.py` decompresses under a budget, `archives.py` opens zip files, `hub_rows.py` streams
files from the Hub (`hub_files.py`).
"""
