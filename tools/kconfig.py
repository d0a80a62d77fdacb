from __future__ import annotations
from pathlib import Path
from tools.fragments import Request
def explain_misses(source: Path, arch: str, config: Path, missed: list[Request]) -> str:
    return "not granted: " + ", ".join(f"{m.text} ({m.place})" for m in missed)
