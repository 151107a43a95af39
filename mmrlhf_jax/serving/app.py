"""The routes of the server, and what happens to every request: its key, its id, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mmrlhf_jax.serving import chat, openrlhf, rewards, views
from mmrlhf_jax.serving.errors import ApiError
from mmrlhf_jax.serving.requests import check_head, check_host, check_key
from mmrlhf_jax.serving.service import Service

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def make_app(service: Service) -> Starlette:
    """The application. Every path but those of health needs the key, if the service has one."""
    posts: dict[str, Handler] = {"/v1/chat/completions": chat.completions, "/v1/rewards": rewards.rewards}
    posts |= dict.fromkeys(("/score", "/v1/score"), views.score)
    posts |= dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), views.rerank)
    posts |= {"/classify": views.classify, "/get_reward": openrlhf.get_reward}
    gets: dict[str, Handler] = {"/v1/models": _models, "/v1/models/{name:path}": _model, "/metrics": _metrics}
    open_gets: dict[str, Handler] = {"/health": _health, "/ready": _ready}
    routes = [Route(path, _guarded(handler), methods=["POST"]) for path, handler in posts.items()]
    routes += [Route(path, _guarded(handler), methods=["GET"]) for path, handler in gets.items()]
    routes += [Route(path, _guarded(handler, needs_key=False), methods=["GET"]) for path, handler in open_gets.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    # A redirect to a path with or without its last slash would be made of the Host header, which anybody can set.
    app.router.redirect_slashes = False
    app.add_middleware(_Counted, service=service)
    app.state.service = service
    return app


class _Counted:
    """Counts the requests whose replies have not gone out, so that the server's end can wait for them."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._service.handled += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._service.handled -= 1


def _guarded(handler: Handler, *, needs_key: bool = True) -> Handler:
    """The handler behind the key, with its errors as replies. No message of a library reaches the client."""

    async def guarded(request: Request) -> Response:
        service: Service = request.app.state.service
        name = _request_id(request)
        deadline = request.state.deadline = asyncio.get_running_loop().time() + service.limits.seconds
        try:
            check_head(request)
            check_host(request, service.key)
            if needs_key:
                check_key(request, service.key)
                service.check_load()
            async with asyncio.timeout_at(deadline):
                response = await handler(request)
        except TimeoutError:
            response = _refusal(service, service.too_long())
        except ApiError as error:
            response = _refusal(service, error)
        except Exception:
            logger.exception("request %s", name)
            response = _refusal(service, ApiError(500, f"the server has failed; its log has the reason under {name}"))
        response.headers["x-request-id"] = name
        return response

    return guarded


def _request_id(request: Request) -> str:
    """The client's name for its request if it is a plain one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def _refusal(service: Service, error: ApiError) -> Response:
    service.metrics.rejections.labels(error.code or str(error.status)).inc()
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _http_error(request: Request, error: HTTPException) -> Response:
    headers = dict(error.headers or {})
    message = {404: "no such path; docs/serving.md lists the paths", 405: f"this path takes {headers.get('Allow')} alone"}
    found = ApiError(error.status_code, message.get(error.status_code, "the request is invalid"))
    response = _refusal(request.app.state.service, found)
    response.headers.update({"x-request-id": _request_id(request)} | headers)
    return response


async def _models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_described(request.app.state.service)]})


async def _model(request: Request) -> Response:
    service: Service = request.app.state.service
    rewards.check_model(service, request.path_params["name"])
    return JSONResponse(_described(service))


def _described(service: Service) -> dict[str, str | int]:
    found = {"id": service.model.name, "object": "model", "created": int(service.started), "owned_by": "mmrlhf_jax"}
    return found | {"max_model_len": service.model.longest_trunk + service.model.longest_branch}


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    service.metrics.running.set(service.worker.running)
    service.metrics.waiting.set(service.worker.waiting)
    service.metrics.look(service.worker.schedulers)
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
