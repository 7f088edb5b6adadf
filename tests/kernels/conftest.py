"""Triton interprets kernels or compiles them, and decides when it is imported: two processes, two sets of tests."""

from __future__ import annotations

import os

collect_ignore = (
    ["test_compiled.py", "test_interpreter.py"] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
)
