"""The pipeline behind BentoML: `python -m bentoml serve peers.bentoml_server:Street --port PORT`.

One worker with one thread, no batching; its access log and its metrics, which are on by default, are off. The
picture is a root input (the body itself).
"""

from typing import Annotated

import bentoml  # type: ignore[import-not-found]

from peers.pipeline import Pipeline


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 300},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Street:
    """BentoML's service around the pipeline."""

    def __init__(self) -> None:
        self.pipeline = Pipeline()

    @bentoml.api  # type: ignore[untyped-decorator]
    def predict(
        self, image: Annotated[bytes, bentoml.validators.ContentType("image/jpeg")], /
    ) -> Annotated[bytes, bentoml.validators.ContentType("application/octet-stream")]:
        """The label map of a JPEG."""
        return self.pipeline.answer(image)
