"""The only reader of rows: training, jobs over files, export and benchmarks read csv, tsv, jsonl and parquet with it.

`reader` opens a file and yields each row, or what is wrong with it. Jobs record malformed rows; the others stop there.
"""
