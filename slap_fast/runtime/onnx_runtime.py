"""onnxruntime without telemetry: since 1.32 its import opens a session that reports to Microsoft."""

from __future__ import annotations

import os
from typing import Any


def import_onnxruntime() -> Any:
    """The module, which sends nothing and writes no `.ses` into the folder of temporary files.

    Without effect if the program imported onnxruntime before. `ORT_DISABLE_TELEMETRY=0` of the user stays.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import
    import onnxruntime

    return onnxruntime
