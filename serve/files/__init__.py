"""Files in, files out: a job classifies the rows of a file of any size, in constant memory.

Rows are read one at a time (`serve.contract.rows`), cut into chunks (`row_chunk`) that the model answers, laid out as
a table (`table`), and appended to files that appear once complete (`output`). `job` runs it all. `folder` shares files
among workers; `table_classifier` is for engines that read and write the rows themselves.
"""
