"""The routes of the server, and what happens to every request: its key, its id, and errors in OpenAI's form."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mmrlhf_jax.serving import chat, rewards
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.requests import check_head, check_key
from mmrlhf_jax.serving.service import Service

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def make_app(service: Service) -> Starlette:
    """The application. Every path but those of health needs the key, if the service has one."""
    posts: dict[str, Handler] = {"/v1/chat/completions": chat.completions, "/v1/rewards": rewards.rewards}
    posts |= dict.fromkeys(("/score", "/v1/score"), rewards.score)
    posts |= dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), rewards.rerank)
    posts |= {"/classify": rewards.classify, "/get_reward": rewards.get_reward}
    gets: dict[str, Handler] = {"/v1/models": _models, "/metrics": _metrics, "/health": _health, "/ready": _ready}
    routes = [Route(path, _guarded(handler), methods=["POST"]) for path, handler in posts.items()]
    routes += [Route(path, _guarded(handler), methods=["GET"]) for path, handler in gets.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.state.service = service
    return app


def _guarded(handler: Handler) -> Handler:
    """The handler behind the key, with its errors as replies. No message of a library reaches the client."""

    async def guarded(request: Request) -> Response:
        service: Service = request.app.state.service
        given = request.headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        try:
            check_head(request)
            if request.url.path not in ("/health", "/ready"):
                check_key(request, service.key)
            response = await handler(request)
        except ApiError as error:
            service.metrics.rejections.labels(error.code or str(error.status)).inc()
            response = JSONResponse(error.body(), error.status, headers=error.headers())
        except Exception:
            logger.exception("request %s", name)
            error = ApiError(500, f"the server has failed; its log has the reason under {name}")
            response = JSONResponse(error.body(), error.status, headers=error.headers())
        response.headers["x-request-id"] = name
        return response

    return guarded


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = {404: "no such path", 405: "this path has another method"}.get(error.status_code, "the request is invalid")
    refused = ApiError(error.status_code, message)
    return JSONResponse(refused.body(), refused.status, headers=refused.headers() | dict(error.headers or {}))


async def _models(request: Request) -> Response:
    service: Service = request.app.state.service
    model = {"id": service.model.name, "object": "model", "created": int(service.started), "owned_by": "mmrlhf_jax"}
    model["max_model_len"] = service.model.longest_trunk + service.model.longest_branch
    return JSONResponse({"object": "list", "data": [model]})


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    service.metrics.running.set(service.worker.running)
    service.metrics.waiting.set(max(service.worker.jobs - service.worker.running, 0))
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def _health(request: Request) -> Response:
    """Whether the thread that runs the lanes lives."""
    alive = request.app.state.service.worker.alive
    return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)


async def _ready(request: Request) -> Response:
    """Whether requests are taken: the programs are compiled, and the server is not ending."""
    service: Service = request.app.state.service
    ready = service.worker.ready and not service.draining
    return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)
