"""One module per wire protocol, each thin over `serve.batching.engine`: parse, classify, write.

They need the extra `server`, and are imported when the application is built.
"""
