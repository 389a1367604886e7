"""Flask: a request that stores an image leaves a job behind.

    cd examples
    export AXEQ_URI='mongodb://localhost:27017/shop'    # or what `axeq dev ./data` prints
    python flask_app.py                                 # starts the worker, too
    curl -X POST localhost:5000/images -H 'content-type: application/json' -d '{"name": "a.jpg"}'
    curl localhost:5000/jobs

With the worker run by hand instead: `flask --app flask_app run`, and `python worker.py` beside it.
"""

import os
import signal
import sys

import background
from flask import Flask, Request, g, jsonify, request
from flask.typing import ResponseReturnValue
from models import Thumbnail

import axeq

app = Flask(__name__)
queue = axeq.Queue(axeq.Store())


def uploaded(request: Request) -> bool:
    return request.endpoint == "upload"


def thumbnail(request: Request) -> Thumbnail:
    return Thumbnail(image=g.image["name"], width=g.image.get("width", 320))


# Runs before the response is sent: whoever reads 202 has a job. A failed request leaves none.
app.after_request(queue.callback(thumbnail, when=uploaded))


@app.post("/images")
def upload() -> ResponseReturnValue:
    g.image = request.get_json()
    if not g.image.get("name"):
        return jsonify(error="an image needs a name"), 422
    return jsonify(g.image), 202


@app.get("/jobs")
def jobs() -> ResponseReturnValue:
    return jsonify([{"image": job.data["image"], "state": job.state, "result": job.result} for job in queue.find()])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the block below is left, which ends the worker
    with background.worker():
        app.run(port=int(os.environ.get("PORT", "5000")))
