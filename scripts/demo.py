"""What scripts/demo.sh runs once VisionFlow is installed: three commands in one process, which imports torch once."""

import sys
import threading
import time

from visionflow_hf.cli import main

STEPS = (
    ("simulating a corpus: 2 subjects who see handwritten digits", ["simulate", "demo/corpus"]),
    (
        "training a model: 750 steps on images, then the maps between voxels and latent",
        ["train", "demo/corpus", "demo/model"],
    ),
    (
        "evaluating it on the test stimuli, beside ridge regression",
        ["evaluate", "demo/model", "demo/corpus", "demo/report"],
    ),
)
MINUTES = 5  # on two idle cores
SILENCE = 8  # s, after which a line says that the step goes on
END = """
Done after {time}. Open demo/report/report.html: images, their reconstructions, and all figures.

Next:
  . .venv/bin/activate
  visionflow app demo/model --corpus demo/corpus     the model in the browser (pip install -c constraints.txt '.[app]')
  visionflow prepare arrays FILE corpus              a corpus of your own images and responses (docs/data.md)
"""


class Heard:
    """A stream that knows when something was last written to it."""

    last = time.monotonic()

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        Heard.last = time.monotonic()
        return self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def clock(begun: float) -> str:
    return "{:.0f}:{:02.0f}".format(*divmod(time.monotonic() - begun, 60))


def say_that_it_goes_on(begun: float) -> None:
    while True:
        time.sleep(1)
        if time.monotonic() - Heard.last > SILENCE:
            print(f"  ... still at work, {clock(begun)}", flush=True)


def demo() -> int:
    begun = time.monotonic()
    sys.stdout, sys.stderr = Heard(sys.stdout), Heard(sys.stderr)
    threading.Thread(target=say_that_it_goes_on, args=(begun,), daemon=True).start()
    print(f"This takes about {MINUTES} minutes on two cores. Everything is written to demo/.")
    for number, (what, words) in enumerate(STEPS, 1):
        print(f"\n[{clock(begun)}] step {number} of {len(STEPS)}, {what}", flush=True)
        status = main([*words, "--overwrite"])
        if status:
            return status
    print(END.format(time=clock(begun)))
    return 0


if __name__ == "__main__":
    sys.exit(demo())
