"""The OpenAPI 3.1 document, made from the routes and their shapes; nothing in it is written by hand twice."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from dhara.api import params
from dhara.api.problems import PROBLEMS, Problem
from dhara.api.routes import PROBE, Route

_REF = "#/components/schemas/{name}"
_PATH_PARAMETERS = {
    "id": params.ID_SCHEMA,
    "name": params.NAME_SCHEMA,
    "fingerprint": {"type": "string"},
    "key": params.KEY_SCHEMA,
    "file": {"type": "string"},
}
_KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same as the field idempotency_key.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The document of `routes`."""
    schemas, components = _schemas(routes)
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        for path in route.paths:
            paths[path][route.method.lower()] = _operation(route, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dhara",
            "version": version,
            "description": "A distributed task queue on PostgreSQL.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": dict(paths),
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
    }


def _schemas(routes: Sequence[Route]) -> tuple[dict[Any, dict[str, Any]], dict[str, Any]]:
    """A schema of every shape that is a type, and the components that these refer to."""
    types = [Problem]
    for route in routes:
        types += [shape for shape in (route.request, *route.answers.values()) if _is_type(shape)]
    found, components = msgspec.json.schema_components(types, ref_template=_REF)
    return dict(zip(map(_key, types), found, strict=True)), {name: _tidy(schema) for name, schema in components.items()}


def _is_type(shape: Any) -> bool:
    return shape is not None and not isinstance(shape, str)


def _key(shape: Any) -> str:
    return repr(shape)


def _tidy(schema: Any) -> Any:
    """Without nulls: what is absent is left out, never null; but where null is a wish of its own, its shape says so."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _tidy(value) for key, value in schema.items() if not (key == "default" and value is None)}
    options = tidy.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options and not tidy.pop("x-null", False):
        rest = [option for option in options if option != {"type": "null"}]
        del tidy["anyOf"]
        tidy |= rest[0] if len(rest) == 1 else {"anyOf": rest}
    return tidy


def _operation(route: Route, path: str, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route, path),
        "summary": route.summary,
        "tags": [route.tag],
        "responses": _responses(route, schemas),
        "x-scope": route.scope,
    }
    if parameters := _parameters(route, path):
        operation["parameters"] = parameters
    if route.request is not None:
        content = {"application/json": {"schema": schemas[_key(route.request)]}}
        operation["requestBody"] = {"required": route.request_required, "content": content}
    if route.scope == PROBE:
        operation["security"] = []
    return operation


def _operation_id(route: Route, path: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", path.removeprefix("/api/v1").lower()).split()
    prefix = [] if path.startswith("/api/v1") else ["root"]
    return "_".join([*prefix, route.method.lower(), *words])


def _parameters(route: Route, path: str) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", path)
    ]
    in_query = [
        {"name": p.name, "in": "query", "required": False, "description": p.about, "schema": p.schema}
        for p in route.query
    ]
    header = [_KEY_HEADER] if path.endswith("/tasks") and route.method == "POST" else []
    return [*in_path, *in_query, *header]


def _responses(route: Route, schemas: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, shape in route.answers.items():
        content = {shape: {}} if isinstance(shape, str) else {"application/json": {"schema": schemas[_key(shape)]}}
        responses[str(status)] = {"description": route.summary, "content": content}
    codes: defaultdict[int, list[str]] = defaultdict(list)
    for code in route.problems:
        codes[PROBLEMS[code][0]].append(code)
    for status, names in sorted(codes.items()):
        entry = responses.setdefault(str(status), {"description": "", "content": {}})
        entry["description"] = "; ".join(
            filter(None, [entry["description"], *(f"{n}: {PROBLEMS[n][1]}" for n in names)])
        )
        entry["content"]["application/problem+json"] = {"schema": {"$ref": _REF.format(name="Problem")}}
    return responses
