"""The job of the examples. Producers import this module, and never the one with the handler."""

from pydantic import BaseModel

import axeq


class Made(BaseModel):
    """What the job returns."""

    path: str


class Thumbnail(axeq.Model[Made], name="thumbnail"):
    """Makes a small copy of an image."""

    image: str
    width: int = 320
