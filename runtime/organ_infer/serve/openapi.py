"""The description of the interface, in the form of OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""

from typing import Any

from .limits import ServiceLimits

__all__ = ["openapi_document"]

_NUMBER = {"type": "number", "minimum": 0, "maximum": 1}
_PREDICTION = {
    "type": "object",
    "description": "A classified slice. Versions may add keys.",
    "required": ["path", "label", "index", "probability", "organ", "organ_probability", "probabilities", "warnings"],
    "properties": {
        "path": {"type": "string", "description": "The file's name, with #0, #1, ... for files of many slices."},
        "label": {"type": "string", "description": "The class with the highest probability."},
        "index": {"type": "integer", "description": "The index of the label among the classes."},
        "probability": _NUMBER,
        "organ": {"type": "string", "description": "The organ with the highest probability, without its side."},
        "organ_probability": _NUMBER,
        "probabilities": {"type": "object", "additionalProperties": _NUMBER},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip
_FAILURE = {
    "type": "object",
    "description": "A file or slice that could not be read.",
    "required": ["path", "error"],
    "properties": {"path": {"type": "string"}, "error": {"type": "string"}},
    "additionalProperties": False,
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "One line."}},
}
_RESULTS = {
    "type": "array",
    "items": {
        "oneOf": [
            {"$ref": "#/components/schemas/Prediction"},
            {"$ref": "#/components/schemas/Failure"},
        ]
    },
}


def openapi_document(version: str, limits: ServiceLimits) -> dict[str, Any]:
    """Return the document, with the limits of a service."""
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "organ-infer",
            "version": version,
            "description": "Names the organ on crops of abdominal CT slices. Research software, not a medical device.",
            "license": {"name": "Apache-2.0"},
        },
        "paths": {
            "/v1/predict": {
                "post": {
                    "summary": "Classify images",
                    "operationId": "predict",
                    "description": "The body is one image, or a form with files. Their content decides the format:"
                    " PNG, JPEG, DICOM, .npy, .npz, TIFF, BMP, GIF, PNM, WebP, JPEG 2000.",
                    "parameters": [
                        {
                            "name": "name",
                            "in": "query",
                            "required": False,
                            "schema": {"type": "string", "default": "upload"},
                            "description": "Names the image if it is the whole body.",
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "description": f"At most {limits.request_bytes:,} bytes, {limits.files:,} files and"
                        f" {limits.slices:,} slices of {limits.pixels:,} pixels each.",
                        "content": {
                            "multipart/form-data": {
                                "schema": {
                                    "type": "object",
                                    "properties": {
                                        "files": {
                                            "type": "array",
                                            "items": {"type": "string", "format": "binary"},
                                        }
                                    },
                                }
                            },
                            "application/octet-stream": {},
                        },
                    },
                    "responses": {
                        "200": _answer(
                            "At least one slice was classified. Results in the order of the files.",
                            _RESULTS,
                        ),
                        "422": _answer("Nothing could be classified.", _RESULTS),
                        "400": _answer("The body is empty, or the form is damaged."),
                        "408": _answer("The request did not arrive in time."),
                        "413": _answer("A limit is exceeded."),
                        "415": _answer("The form or the content encoding is not supported."),
                        "500": _answer("The model failed."),
                        "503": _answer("Too many requests at once.") | {"headers": retry},
                    },
                }
            },
            "/healthz": {
                "get": {
                    "summary": "Whether the service works, and its model",
                    "operationId": "health",
                    "responses": {
                        "200": _answer("It works.", {"type": "object"}),
                        "503": _answer("The last run of the model failed.", {"type": "object"}),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Metrics for Prometheus",
                    "operationId": "metrics",
                    "responses": {
                        "200": {
                            "description": "Prometheus' text format.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        }
                    },
                }
            },
        },
        "components": {
            "schemas": {"Prediction": _PREDICTION, "Failure": _FAILURE, "Error": _ERROR}
        },
    }


def _answer(text: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    schema = schema or {"$ref": "#/components/schemas/Error"}
    return {"description": text, "content": {"application/json": {"schema": schema}}}
