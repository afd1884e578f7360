"""The store on object storage: the same keys and promises on an S3 server, behind a local read-through cache.

Not here: keys and records (`spin_core/store`), which are the same in a folder.
May import: the rest of store, errors.
"""
