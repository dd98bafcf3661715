"""One module per wire protocol, each thin over `serve.batching.engine`: parse, classify, write.

They need the `server` extra, and are imported when a server is built.
"""
