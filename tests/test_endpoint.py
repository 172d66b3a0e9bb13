"""The handler of Inference Endpoints: loaded from a model folder and called over HTTP, as their server does."""

import base64
import io
import json
import subprocess
import sys
from http.client import HTTPConnection

import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image
from stranger import STRANGER

from visionflow_hf.hub import load_model

# What the endpoints' server does: the folder on the path, handler.py by its place, JSON or an image in, JSON out.
SERVER = """
import importlib.util
import io
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

from PIL import Image

folder = sys.argv[1]
sys.path.insert(0, folder)
spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)


class Request(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_image = self.headers["Content-Type"].startswith("image/")
        data = {"inputs": Image.open(io.BytesIO(body)).convert("RGB")} if is_image else json.loads(body)
        if is_image:
            data["parameters"] = {"subject": self.path.partition("subject=")[2]}
        try:
            status, answer = 200, handler(data)
        except Exception as error:
            status, answer = 400, {"error": str(error)}
        answer = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass


server = HTTPServer(("127.0.0.1", 0), Request)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def ask(run):
    """Send a request to a server of `run`, by somebody without this package: status and answer."""
    command = [sys.executable, "-I", "-c", STRANGER + SERVER, str(run)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip()
        assert port, server.communicate()[1][-4000:]

        def request(body, content_type: str = "application/json", query: str = "") -> tuple[int, dict]:
            connection = HTTPConnection("127.0.0.1", int(port), timeout=60)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", f"/{query}", data, {"Content-Type": content_type})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        yield request
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def rows(corpus):
    rows = load_from_disk(corpus)["test"]
    return rows.filter(lambda name: name == "subj02", input_columns="subject").select(range(2))


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
IMAGE = base64.b64encode(file_of(Image.fromarray(PIXELS))).decode()


def image_in(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_images_to_fmri(ask, run, rows):
    model, processor = load_model(run)
    expected = model.predict_fmri(**processor(images=rows["image"], subject="subj02")).numpy()
    files = [file_of(image) for image in rows["image"]]
    encoded = [base64.b64encode(file).decode() for file in files]
    status, answer = ask({"inputs": encoded, "parameters": {"subject": "subj02"}})
    assert status == 200 and np.allclose(answer["fmri"], expected, atol=1e-4)
    status, answer = ask({"inputs": f"data:image/png;base64,{encoded[1]}", "parameters": {"subject": "subj02"}})
    assert status == 200 and np.allclose(answer["fmri"], expected[1], atol=1e-4)
    status, answer = ask(files[0], "image/png", "?subject=subj02")
    assert status == 200 and np.allclose(answer["fmri"], expected[0], atol=1e-4)


def test_fmri_to_images_and_samples(ask, run, rows):
    model, processor = load_model(run)
    pixels = model.reconstruct_image(**processor(fmri=rows["fmri"], subject="subj02"))
    expected = [np.asarray(image) for image in processor.post_process_images(pixels)]
    status, answer = ask({"inputs": list(rows["fmri"]), "parameters": {"subject": "subj02"}})
    assert status == 200 and np.array_equal([image_in(one) for one in answer["image"]], expected)
    status, answer = ask({"inputs": rows[0]["fmri"], "parameters": {"subject": "subj02", "num_samples": 3}})
    assert status == 200 and len({one for one in answer["image"]}) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inputs": "/etc/hostname", "parameters": {"subject": "subj02"}}, "not the base64 of an image file"),
        ({"inputs": "http://127.0.0.1:9/image.png", "parameters": {"subject": "subj02"}}, "not the base64"),
        ({"inputs": [[1, 2], [3]], "parameters": {"subject": "subj02"}}, "neither images"),
        ({"inputs": [1, 2, 3], "parameters": {"subject": "subj02"}}, "30 voxels"),
        ({"inputs": [0.0] * 30}, "needs its subject"),
        ({"inputs": [0.0] * 30, "parameters": {"subject": "nobody"}}, "unknown subject nobody"),
        ({"inputs": [0.0] * 30, "parameters": {"seed": 1}}, "unknown parameters seed"),
        (
            {"inputs": [0.0] * 30, "parameters": {"subject": "subj02", "num_samples": "4"}},
            "num_samples is '4': a whole",
        ),
        ({"inputs": [0.0] * 30, "parameters": {"subject": 2}}, "subject is a int: give one name"),
        ({"inputs": IMAGE, "parameters": {"subject": "subj02", "rois": 5}}, "rois is 5: give a list"),
        (
            {"inputs": [0.0] * 30, "parameters": ["subj02"]},
            "parameters are a list: a dict of subject, num_samples, rois",
        ),
        ({"inputs": IMAGE[:200], "parameters": {"subject": "subj02"}}, "not the base64 of an image file"),
        ({"parameters": {}}, "inputs"),
    ],
)
def test_what_is_refused(ask, data, message):
    status, answer = ask(data)
    assert status == 400 and message in answer["error"]


def test_requirements_lie_beside_the_handler(run):
    assert "transformers>=5.20,<6" in (run / "requirements.txt").read_text().splitlines()
