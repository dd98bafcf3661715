"""Files in, files out: a job classifies the rows of a file of any size, in constant memory.

Rows are read one after the other (`rows`), cut into chunks (`row_chunk`) that the model answers, laid out as a
table (`table`), and appended to files that appear once they are whole (`output`, `rejects`); `job` leads.
"""
