"""Whether the language model that writes prompts can be asked, without asking it for anything that costs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipelines.doctor.findings import Finding, Setup, good, problem, unknown, warning
from prompts.endpoint import Endpoint
from prompts.errors import PromptError
from stages.prompts.config import PromptsConfig

_SECONDS = 8.0
#: Hosts that answer nobody without a key.
_NEEDS_KEY = ("openai.com", "openrouter.ai", "anthropic.com", "mistral.ai", "groq.com", "together.xyz", "deepseek.com")


def check(setup: Setup) -> Iterator[Finding]:
    """The endpoint, its key and its model."""
    settings = setup.config.prompts
    if "prompts" not in setup.graph.stages:
        return
    if settings.endpoint is None:
        yield good(f"a grammar writes the prompts (prompts.grammar={settings.grammar}); no key is needed")
        return
    try:
        endpoint = Endpoint(
            base_url=settings.endpoint,
            model=settings.model,
            api_key=os.environ.get("OPENAI_API_KEY") or None,
            timeout_seconds=_SECONDS,
            retries=0,
        )
    except PromptError as error:
        yield problem(str(error).rstrip("."))
        return
    if endpoint.api_key is None and _needs_key(settings.endpoint):
        yield problem(f"{settings.endpoint} (prompts.endpoint) needs a key: set OPENAI_API_KEY")
        return
    yield _ask(endpoint, settings)


def _needs_key(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return any(host == name or host.endswith(f".{name}") for name in _NEEDS_KEY)


def _ask(endpoint: Endpoint, settings: PromptsConfig) -> Finding:
    """Ask for the list of models, which costs nothing."""
    import openai

    from prompts.connection import connect

    where = f"{settings.endpoint} (prompts.endpoint)"
    try:
        names = [model.id for model in connect(endpoint).models.list()]
    except PromptError as error:
        return problem(str(error).rstrip("."))
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        key = "the key in OPENAI_API_KEY" if endpoint.api_key else "a request without a key: set OPENAI_API_KEY"
        return problem(f"{where} answers {error.status_code} to {key}")
    except openai.APITimeoutError:
        return unknown(f"{where} does not answer within {_SECONDS:g} s")
    except openai.APIConnectionError as error:
        reason = str(error.__cause__ or error).strip().rstrip(".")
        return problem(f"{where} cannot be reached ({reason}): start it, or correct the URL")
    except Exception as error:  # a server without a list of models answers in many ways
        return unknown(f"{where} answers, but lists no models ({' '.join(str(error).split())[:120]})")
    if names and settings.model not in names:
        return warning(f"{where} does not list prompts.model={settings.model}; it has {', '.join(names[:5])}")
    return good(f"{where} answers")
