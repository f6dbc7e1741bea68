"""What the edge client, the server and the exporter agree on: layout, messages, codec, bundle format.

Needs NumPy and msgpack. Nothing here opens a socket, and only `bundle` and `cli` touch files.
"""

__version__ = "0.1.0"
