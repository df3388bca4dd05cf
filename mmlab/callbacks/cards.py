"""Pictures and sounds inside a page that is one file, and how such pages look."""

from __future__ import annotations

import base64
import io

from PIL import Image

THUMBNAIL = 144
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem;
       color: #222 }
h2 { margin: 2.2rem 0 .3rem } p { margin: .2rem 0 1rem; color: #555 }
.row { display: flex; gap: .6rem; margin: .5rem 0 1.1rem; align-items: stretch }
.card { width: 9.6rem; border: 2px solid #ddd; border-radius: .5rem; padding: .4rem; text-align: center;
        font-size: 13px; overflow-wrap: anywhere; background: #fff }
.query { border-color: #444; background: #f4f4f4 } .right { border-color: #2a9d4a; background: #eefaf0 }
.card img { max-width: 100%; height: 7.5rem; object-fit: contain } .card audio { width: 100%; height: 2rem }
.wide { width: 18rem; text-align: left } .card img + img { margin-top: .3rem }
.note { color: #777; font-size: 12px } .arrow { align-self: center; font-size: 1.6rem; color: #888 }
"""


def sound_tag(name: str, content: bytes) -> str:
    """A player; `name` ends in the kind of file."""
    source = f"data:audio/{name.rsplit('.', 1)[-1]};base64,{base64.b64encode(content).decode()}"
    return f"<audio controls preload=none src='{source}'></audio>"


def open_picture(content: bytes) -> Image.Image:
    """A picture with its transparency."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGBA")


def thumbnail(content: bytes) -> str:
    """A small picture as a data URI; transparency stays and shows the card's own ground."""
    small = open_picture(content)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
