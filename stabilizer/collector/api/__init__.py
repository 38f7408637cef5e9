"""HTTP: routers, access, errors as problem documents, metrics. Knows no SQL."""
