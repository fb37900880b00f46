"""Manifests: the rows of a catalogue, as JSONL, CSV or Parquet, on disk or in a store, read as a stream.

source     where a manifest's bytes come from         rows      each format's rows, as plain dicts
dialects   the names other tools give the same fields jobs      a row → an InpaintJob
manifest   `Manifest`: all of it together
"""

from producer.manifest.manifest import Manifest, Row

__all__ = ["Manifest", "Row"]
