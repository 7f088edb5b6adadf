"""Triton chooses between interpreter and compiler when it is imported: each has its own process and tests."""

from __future__ import annotations

import os

collect_ignore = (
    ["test_compiled.py", "test_interpreter.py"] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
)
