"""The only importers of packages that may move under us; each is narrow and tested name by name."""
