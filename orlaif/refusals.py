"""What a chat server says when it refuses a request, and which setting that is about."""

from __future__ import annotations

import json
from typing import Any


def shown(settings: dict[str, Any]) -> str:
    """The limits of length among the fields of a request, by their settings."""
    limits = [f"client.{name} {settings[name]}" for name in ("max_tokens", "max_completion_tokens") if name in settings]
    return ", ".join(limits) or "no limit of tokens was sent"


def words(body: str) -> str:
    """The message in the body of an error, as OpenAI, vLLM and FastAPI put it, or the body itself; 500 characters."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        said = body
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    line = " ".join((said if isinstance(said, str) else json.dumps(said)).split()) if said else ""
    return line if len(line) <= 500 else f"{line[:500]}..."


def advice(status: int, said: str, model: str, settings: dict[str, Any]) -> str:
    """Which setting a refused field belongs to."""
    if status not in (400, 422):
        return {401: " (client.api_key_env)", 404: " (client.base_url, client.model)"}.get(status, "")
    if "max_tokens" in settings and "max_tokens" in said:
        return " (set client.max_completion_tokens, or client.max_tokens: null)"
    if "temperature" in settings and "temperature" in said:
        return " (set client.temperature: null)"
    named = any(f"{mark}{model}{mark}" in said for mark in ("'", '"', "`"))
    return " (client.model)" if named else ""
