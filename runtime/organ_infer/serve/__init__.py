"""The web service of organ-infer serve (extra `serve`): a Starlette application, run by uvicorn.

    app.py       the routes, and the way of a request from its body to its answer
    bodies.py    bodies within the limits, and the files in them
    batcher.py   dynamic batching: requests that wait are classified together
    protocol.py  uvicorn's HTTP protocol with timeouts for slow clients
    server.py    the socket, signals and the graceful shutdown

`organ_infer.ray.deployment` runs the same application on Ray Serve.
"""
